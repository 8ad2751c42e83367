"""Freed memory stays with the process, and fp32 products are as fast as they can be without a loss."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fas.pipeline import load
from fas.runtime.memory import keep_freed_memory

COUNT = """
import resource, torch
from fas.runtime.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.empty(16 * 1024**2).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
ordinary = faults()
assert keep_freed_memory() and keep_freed_memory()
faults()
print(ordinary, faults())
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library cannot be told to keep memory")
def test_large_tensors_cost_no_page_faults_twice() -> None:
    run = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    ordinary, kept = map(int, run.stdout.split())
    assert ordinary > 100  # 64 MiB each time, in pages of 4 KiB or of 2 MiB
    assert kept < ordinary / 4  # one of the eight may meet a heap that something else has just grown into


RETURN = """
import torch
from fas.runtime.memory import keep_freed_memory, return_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024
keep_freed_memory()
before = resident()
torch.empty(64 * 1024**2).fill_(1)
kept = resident()
return_freed_memory()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library cannot be told to keep memory")
def test_kept_memory_can_be_returned() -> None:
    run = subprocess.run([sys.executable, "-c", RETURN], capture_output=True, text=True, check=True)
    kept, returned = map(int, run.stdout.split())
    assert kept > 240  # MiB of 256
    assert returned < 32


@pytest.mark.parametrize(("rounded", "chosen"), [(False, "medium"), (True, "highest")])
def test_products_are_fast_where_they_lose_nothing(rounded: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this processor does: products in fp32 pass the probe, and with operands in bf16 they do not."""
    product = torch.Tensor.__matmul__

    def multiplied(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float32 and rounded:
            left, right = left.bfloat16().float(), right.bfloat16().float()
        return product(left, right)

    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: None)
    monkeypatch.setattr(torch.Tensor, "__matmul__", multiplied)
    assert load._matmul_precision() == chosen
