"""Models and tensors that have a shape and no memory (torch's `FakeTensorMode`), for what code takes (`fas.runtime.alive`).

The same modules run as in a conversion, with their attention, losses and sites; so nothing is known of any architecture here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fas.neurons import pieces, rotation


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, tensors (and models that are made) have shapes and no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    whole, pieces.PIECE = pieces.PIECE, 1 << 62  # pieces are there for a CPU's cache, and many steps to follow
    rotation.forget()
    try:
        with FakeTensorMode():
            yield
    finally:
        pieces.PIECE = whole
        rotation.forget()  # matrices without values must not stay
