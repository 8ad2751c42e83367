"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
