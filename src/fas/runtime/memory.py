"""Large tensors without page faults."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
TOP_PAD = 64 * 1024**2


def keep_freed_memory() -> bool:
    """Keep what tensors free inside this process, for the next ones; returns whether the C library could be told.

    glibc hands every block of more than 32 MiB back to the system at once, and the next tensor of that size costs a page
    fault for each 4 KiB: with T·B rows that halves the speed of a forward pass (docs/log.md). The process then stays as large
    as it was at its peak. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, TOP_PAD))
    return all([bool(mallopt(name, value)) for name, value in settings])


def return_freed_memory() -> None:
    """Hand back what is kept and lies between tensors, where it no longer fits any (some milliseconds)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
