"""Block Hadamard rotation in front of a site: spreads the outliers of a token over the channels of a block.

The product of a gated FFN has heavy tails, which a uniform grid resolves badly. Multiplied by an orthogonal ±1/√b matrix in
blocks of b channels it is close to a Gaussian (QuaRot, Ashkboos et al. 2024, rotates it for integer networks); the weight
that reads it is rotated once, so that the network computes the same. The rotation itself stays analog: log₂ b additions a
channel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST_BLOCK = 256


def block_of(width: int) -> int:
    """Largest power of two that divides ``width``, at most `LARGEST_BLOCK` (1: there is nothing to rotate).

    >>> block_of(352), block_of(11008), block_of(4096), block_of(7)
    (32, 256, 256, 1)
    """
    return min(width & -width, LARGEST_BLOCK)


def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sylvester's matrix ``[size, size]``, scaled to be orthogonal; it is symmetric, hence its own inverse."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (matrix / size**0.5).to(device, dtype)


_kept_hadamard = lru_cache(maxsize=32)(_hadamard)


def forget() -> None:
    """Make the matrices that are kept anew when they are asked for."""
    _kept_hadamard.cache_clear()


class Rotation(NamedTuple):
    """How channels are rotated: in blocks of ``block`` (1: not at all), neighbours or, ``across``, evenly spaced ones."""

    block: int = 1
    across: bool = False


NO_ROTATION = Rotation()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """``x`` ``[…, C]`` with each block of channels rotated; applied twice it gives ``x`` back.

    Across, channels are put in the order (offset in its block, block) before, and back behind: a block then holds some
    channels of every block.
    """
    block, across = rotation
    if block <= 1:
        return x
    if across and block < x.shape[-1]:
        spread = x.unflatten(-1, (-1, block)).transpose(-1, -2).flatten(-2)
        mixed = rotate(spread, Rotation(block))
        return mixed.unflatten(-1, (block, -1)).transpose(-1, -2).flatten(-2)
    # a compiler folds the constant by itself, and warns of a function that caches
    matrix = _hadamard if torch.compiler.is_compiling() else _kept_hadamard
    return (x.unflatten(-1, (-1, block)) @ matrix(block, x.dtype, x.device)).flatten(-2)
