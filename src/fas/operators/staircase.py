"""A group at rest in one look-up: what its N neurons hold together is a staircase of the argument.

At rest (QCFS, or neurons of one level, which never lag) only the neuron whose segment holds the argument is neither empty nor
full, so nothing N times as large as the argument needs to be made. Attention asks one group for every score.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fas.neurons.held import dtype_for

FEW = 16
"""Neurons up to which comparing with each of them is faster than a binary search."""


class _Sloped(torch.autograd.Function):
    """``values`` ``[…, R]`` with the straight-through gradient of the segments: their slope, 0 outside of the range."""

    @staticmethod
    def forward(ctx: Any, argument: Tensor, values: Tensor, corners: Tensor, widths: Tensor, readout: Tensor) -> Tensor:
        ctx.save_for_backward(argument, corners, widths, readout)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        argument, corners, widths, readout = ctx.saved_tensors
        inside = (argument >= corners[0]) & (argument <= corners[-1] + widths[-1])
        place = _segment(argument, corners)
        slopes = torch.stack([slope[place] for slope in readout], -1)
        return (grads[0] * slopes).sum(-1) * inside, None, None, None, None


def staircase(
    argument: Tensor, corners: Tensor, widths: Tensor, readout: Tensor, offset: Tensor, levels: int
) -> Tensor:
    """Readouts ``[…, R]`` of ``argument`` ``[…]``, its neurons (``corners``, ``widths`` ``[N]``) rounded to ``levels``.

    Straight-through gradient: the slope of the segment, 0 outside of the range.
    """
    with torch.no_grad():
        place = _segment(argument, corners)
        width = widths[place]
        code = ((argument - corners[place]) / (width / levels) + 0.5).floor().clamp(0, levels)
        floors = sums(widths, readout, offset)
        held = code * (width / levels)
        values = torch.stack(
            [floor[place] + slope[place] * held for floor, slope in zip(floors, readout, strict=True)], -1
        )
    return _Sloped.apply(argument, values, corners, widths, readout)


def one_level(
    argument: Tensor, number: Tensor, corners: Tensor, widths: Tensor, readout: Tensor, offset: Tensor
) -> Tensor:
    """`staircase` of one level, where it is known how many neurons are `active`: ``number`` ``[…]``."""
    with torch.no_grad():
        values = look_up(number, sums(widths, readout, offset))
    return _Sloped.apply(argument, values, corners, widths, readout)


def sums(widths: Tensor, readout: Tensor, offset: Tensor) -> Tensor:
    """Readouts ``[R, N + 1]`` where the first n neurons are full."""
    rises = torch.cat([torch.zeros_like(readout[:, :1]), readout * widths], 1)
    return offset[:, None] + rises.cumsum(1)


def look_up(number: Tensor, table: Tensor) -> Tensor:
    """Columns ``number`` ``[…]`` of ``table`` ``[R, N + 1]`` as ``[…, R]``."""
    dense, back = _in_memory_order(number)
    found = table.index_select(1, dense.flatten().to(torch.int32)).view(len(table), *dense.shape)
    return found.permute(0, *(1 + d for d in back)).movedim(0, -1)


def active(argument: Tensor, corners: Tensor, widths: Tensor) -> Tensor:
    """How many neurons of one level are full, ``[…]``: those whose segment's middle the argument has reached."""
    middles = corners + widths / 2
    if len(middles) <= FEW:
        number = torch.full_like(argument, len(middles), dtype=dtype_for(len(middles)))
        for middle in middles:
            number -= (argument < middle).view(torch.int8)
        return number
    dense, back = _in_memory_order(argument)
    found = torch.bucketize(dense.contiguous(), middles, out_int32=True, right=True)
    return found.to(dtype_for(len(corners))).permute(back)


def _segment(argument: Tensor, corners: Tensor) -> Tensor:
    return torch.bucketize(argument.contiguous(), corners[1:], right=True)


def _in_memory_order(x: Tensor) -> tuple[Tensor, list[int]]:
    """``x`` with its dimensions as they lie in memory, and the permutation that takes them back."""
    order = sorted(range(x.ndim), key=lambda d: -x.stride(d))
    return x.permute(order), [order.index(d) for d in range(x.ndim)]
