"""Run tests under each instruction set of this machine: ``python scripts/instruction_sets.py [--list] [pytest arguments]``.

Environment variables switch them off for oneDNN and for PyTorch's own kernels, and say what FAS's kernels are compiled for.
So one machine shows what older ones compute. The processor's flags only choose what there is to run.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

TESTS = ("accelerated", "native", "native_check", "decoding", "product_paths")


class Sets(NamedTuple):
    """What stands for one kind of processor; empty: as it is."""

    needs: str
    """A flag of the processor."""
    onednn: str
    aten: str
    march: str


# from the oldest; ATen knows nothing between AVX2 and AVX-512
X86 = (
    Sets("sse4_1", "SSE41", "default", "x86-64-v2"),
    Sets("avx2", "AVX2", "avx2", "x86-64-v3"),
    Sets("avx_vnni", "AVX2_VNNI", "avx2", "x86-64-v3"),
    Sets("avx512bw", "AVX512_CORE", "avx512", "x86-64-v4"),
    Sets("avx512_vnni", "AVX512_CORE_VNNI", "avx512", "native"),
)
AS_IT_IS = Sets("", "", "", "")


def flags() -> set[str]:
    """Of the processor, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def present() -> list[Sets]:
    """What this machine can run."""
    found = flags() if platform.machine().lower() in ("x86_64", "amd64") else set()
    return [*[sets for sets in X86 if sets.needs in found], AS_IT_IS]


def environment(sets: Sets) -> dict[str, str]:
    """The variables that are set."""
    values = {"ONEDNN_MAX_CPU_ISA": sets.onednn, "ATEN_CPU_CAPABILITY": sets.aten, "FAS_MARCH": sets.march}
    return {name: value for name, value in values.items() if value}


def main(arguments: list[str]) -> int:
    """Run them all, also behind one that fails; 1 if any did."""
    tests = [f"tests/test_{name}.py" for name in TESTS]
    failed = []
    for sets in present():
        chosen = environment(sets)
        said = " ".join(f"{name}={value}" for name, value in chosen.items()) or "all that this machine has"
        print(f"Instruction sets: {said}", flush=True)
        if arguments[:1] == ["--list"]:
            continue
        kept = {name: value for name, value in os.environ.items() if name not in environment(X86[0])}
        done = subprocess.run([sys.executable, "-m", "pytest", *tests, *arguments], env=kept | chosen)
        if done.returncode:
            failed.append(said)
    if failed:
        print(f"Failed: {'; '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
