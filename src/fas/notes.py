"""Warnings that point at the user's line, however deep inside FAS they arise."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_OWN = str(Path(__file__).parent)
_BETWEEN = ("contextlib.py", "/torch/utils/_contextlib.py", "/pydantic/main.py")
"""Files between a call of FAS and what it calls of itself."""


def warn(message: str) -> None:
    """A `UserWarning` at the innermost line that is not FAS's own."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _is_inside(file: str) -> bool:
    return file.startswith(_OWN) or file.endswith(_BETWEEN)
