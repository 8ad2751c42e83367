"""Compiles the C++ files beside it for this machine when it is first used, and keeps the library in the user's cache."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

from fas.storage import cache_folder

HERE = Path(__file__).parent
SOURCES = [HERE / name for name in ("kernels.cpp", "products.cpp", "events.cpp", "dense.cpp", "attention.cpp")]
# results must be equal to PyTorch's: no fused multiply-adds, no reordering
FLAGS = (
    "-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-falign-functions=64", "-falign-loops=64",  # a loop that begins at the wrong place takes a sixth longer
)  # fmt: skip
THREADS = "-fopenmp"
"""PyTorch has loaded a library of this name already, so that its threads are those of the kernels: others would wait for the
processors on which its own spin."""
_LIMIT, _AGAIN = 120, 24 * 3600
"""Seconds that a compiler may take, and after which one that took longer is tried again."""
SWITCH = "FAS_NATIVE"
"""Environment: ``0`` leaves the kernels out, without a word."""
ARCHITECTURE = "FAS_MARCH"
"""Environment: the compiler's ``-march``, such as ``x86-64-v3``, which the processor must have; ``native`` if it is not set."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, tried out; None (said once, as a warning) where they cannot be made or compute something else."""
    if (found := loaded()) is None:
        return None
    from fas.neurons.native.check import wrong_kernels

    if wrong := wrong_kernels():
        _say(f"compiled kernels do not compute here what PyTorch does ({', '.join(wrong)})")
        return None
    return found


@functools.cache
def loaded() -> ctypes.CDLL | None:
    """The compiled kernels, not tried out."""
    if os.environ.get(SWITCH) == "0":
        return None
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))), None)
    if compiler is None:
        _say("no C++ compiler was found (c++, g++ or clang++)")
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        _say(f"{HERE.name} kernels could not be compiled or loaded ({' '.join(str(text).split())[:200]})")
        return None


def _say(why: str) -> None:
    warnings.warn(
        f"{why}: neurons run in PyTorch, several times slower, with equal results; {SWITCH}=0 says that this is meant",
        stacklevel=4,
    )


def architecture() -> str:
    """What the kernels are compiled for."""
    return os.environ.get(ARCHITECTURE) or "native"


def _compiled(compiler: str) -> Path:
    flags = (f"-march={architecture()}", *FLAGS)
    key = hashlib.sha256(
        "\n".join(
            [*[path.read_text() for path in (HERE / "common.h", *SOURCES)], compiler, *flags, THREADS, _processor()]
        ).encode()
    ).hexdigest()[:16]
    folder = cache_folder()
    target = folder / f"neurons-{key}.so"
    if target.exists():
        return target
    slow = target.with_suffix(".slow")
    if slow.exists() and time.time() - slow.stat().st_mtime < _AGAIN:
        raise OSError(f"compiling took more than {_LIMIT} s lately; remove {slow} to try again before a day has passed")
    try:
        _make(compiler, flags, target)
    except subprocess.TimeoutExpired:
        slow.touch()  # so that not every command waits
        raise
    return target


def _make(compiler: str, flags: tuple[str, ...], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        made = Path(place) / target.name
        command = [compiler, *flags, *map(str, SOURCES), "-o", str(made)]
        with contextlib.suppress(subprocess.CalledProcessError):  # without OpenMP threads are Python's, which is slower
            _run([*command, THREADS])
        if not made.exists():
            _run(command)
        made.replace(target)  # whole, even if several processes compile


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT)


def _processor() -> str:
    """What ``native`` depends on: homes may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
