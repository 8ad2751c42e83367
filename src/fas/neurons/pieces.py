"""Neurons run through time a piece at a time, so that a CPU's cache holds what all timesteps touch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE = 1 << 15
"""Neurons of a piece."""
BACKWARD = 1 << 14
"""The same on the way back, which holds several values of each."""


def pieces(
    flat: Tensor, width: int, constants: Sequence[Tensor], dtype: torch.dtype, most: int | None = None
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Columns of ``flat`` ``[T, N·C]``, whole channels at a time, with ``constants`` ``[C]`` (or ``[1]``) beside them: as many
    as stay in a CPU's cache through all timesteps (``most`` or `PIECE`), all of them elsewhere."""
    size = flat.shape[1]
    piece = size if flat.device.type != "cpu" else max(1, (most or PIECE) // width) * width
    wide = [c.to(dtype).expand(width).repeat(-(-min(piece, size) // width)) for c in constants]
    for start in range(0, size, piece):
        part = slice(start, min(start + piece, size))
        yield part, [c[: part.stop - start] for c in wide]
