"""Says when the arithmetic of an operator runs, to whoever counts operations: in place of a function that the ANN has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

LISTENERS: list[Callable[[], AbstractContextManager[None]]] = []
"""Contexts that are entered around every operator while somebody counts."""


def operator(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, within the context of the last listener (if there is one)."""

    @wraps(function)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        if not LISTENERS:
            return function(*args, **kwargs)
        with LISTENERS[-1]():
            return function(*args, **kwargs)

    return told
