"""Triton kernels where there is no GPU: run by Triton's interpreter, compiled for GPUs that are elsewhere, and left out."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from fas.neurons.fused import kernels_for
from fas.neurons.native import kernels as native

PROGRAMS = Path(__file__).with_name("triton_programs.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not here")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def python(*arguments: str | Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment | variables, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_triton
@pytest.mark.parametrize(
    "variables", [{"TRITON_INTERPRET": "1"}, pytest.param({}, marks=needs_gpu)], ids=["interpreted", "on-a-gpu"]
)
def test_programs_are_the_same_as_pytorch(variables: dict[str, str]) -> None:
    profile = f"--hypothesis-profile={settings.get_current_profile_name()}"
    assert " passed" in python("-m", "pytest", "-n0", "-p", "no:cacheprovider", profile, PROGRAMS, **variables)


BLOCK = {"BLOCK": 1024}
TILE = {"ROWS": 4, "COLS": 128}
COMPILED: dict[str, list[dict[str, Any]]] = {
    "track": [{"EACH": 1, "TOLD": False, **BLOCK}, {"EACH": 2, "TOLD": True, **BLOCK}],
    "fire": [
        {"SIGNED": True, "MEAN": True, "TOLD": False, **BLOCK},
        {"SIGNED": False, "MEAN": False, "TOLD": True, **BLOCK},
    ],
    "quantize": [BLOCK],
    "track_back": [{"EACH": 1, **TILE}, {"EACH": 2, **TILE}],
    "fire_back": [{"SIGNED": True, "MEAN": True, **TILE}, {"SIGNED": False, "MEAN": False, **TILE}],
    "quantize_back": [TILE],
}
NUMBERS = dict.fromkeys(("size", "width", "timesteps", "tokens"), "i32") | dict.fromkeys(("low", "high"), "fp32")
ROWS = ("rows", "x", "out", "grad", "by_rows", "by_x")


@needs_triton
@pytest.mark.parametrize("rows", ["fp32", "bf16"])
@pytest.mark.parametrize("name", COMPILED)
def test_programs_compile_for_gpus_and_keep_to_ieee(
    name: str, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divisions are rounded to nearest, no product is fused into a sum, and no register is spilled into memory."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget

    from fas.neurons.triton import backward, forward

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    program = getattr(backward if name.endswith("_back") else forward, name)
    for constants in COMPILED[name]:
        fixed = constants | ({"SUM": tl.float32} if name.startswith("fire") else {})
        kinds = {
            argument: "constexpr" if argument.isupper() else NUMBERS.get(argument) or f"*{kind}"
            for argument in program.arg_names
            for kind in ["i8" if argument == "noted" else rows if argument in ROWS else "fp32"]
        }
        source = triton.compiler.ASTSource(program, kinds, constexprs=fixed)
        options = {"num_warps": 4, "enable_fp_fusion": False}
        for capability in (75, 90):
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
            assert "div.rn.f32" in made
            assert re.search(r"\b(fma|mad)\.\w*\.?f32|div\.(full|approx)|\.local", made) is None


FALLS_BACK = """
import sys, torch, warnings
import fas
from fas.neurons import qcfs
from fas.neurons.triton import kernels
qcfs(torch.ones(2, 3), torch.ones(3), 8, True)
assert "triton" not in sys.modules
if "gone" in sys.argv:
    sys.modules["triton"] = None
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    print([kernels.works(torch.device("cpu")) for _ in range(2)])
print(len(found), *[str(entry.message) for entry in found])
"""


@needs_triton
@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ((), {}, "[False, False]\n1 Triton kernels do not run on cpu ("),
        ((), {"FAS_NATIVE": "0"}, "[False, False]\n0\n"),
        (("gone",), {}, "[False, False]\n0\n"),
        ((), {"TRITON_INTERPRET": "1"}, "[True, True]\n0\n"),
    ],
    ids=["fails", "unwanted", "gone", "works"],
)
def test_what_cannot_be_compiled_is_said_once(arguments: tuple[str, ...], variables: dict[str, str], said: str) -> None:
    """On tensors of a CPU, which Triton's compiler does not take: it stands for a GPU that it does not know."""
    assert python("-c", FALLS_BACK, *arguments, **variables).startswith(said)


@pytest.mark.skipif(not native.takes(torch.zeros(1)), reason="no C++ compiler")
def test_the_device_of_the_rows_chooses() -> None:
    assert kernels_for(torch.zeros(2, 3), torch.zeros(3)) is native
    assert kernels_for(torch.zeros(2, 3).double()) is None
    assert kernels_for(torch.zeros(2, 3, device="meta")) is None
