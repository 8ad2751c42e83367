"""A group at rest in one look-up: what its N neurons hold together is a staircase of the argument.

At rest (QCFS, or neurons of one level, which never lag) only the neuron whose segment holds the argument is neither empty nor
full, so nothing N times as large as the argument needs to be made. Attention asks one group for every score.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Staircase(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, argument: Tensor, corners: Tensor, widths: Tensor, readout: Tensor, offset: Tensor, levels: int
    ) -> Tensor:
        place = torch.bucketize(argument.contiguous(), corners[1:], right=True)
        width = widths[place]
        code = ((argument - corners[place]) / (width / levels) + 0.5).floor().clamp(0, levels)
        rises = readout * widths  # [R, N]
        floors = offset[:, None] + rises.cumsum(1) - rises
        ctx.save_for_backward(argument, place, corners, widths, readout)
        held = code * (width / levels)
        return torch.stack(
            [floor[place] + slope[place] * held for floor, slope in zip(floors, readout, strict=True)], -1
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        argument, place, corners, widths, readout = ctx.saved_tensors
        inside = (argument >= corners[0]) & (argument <= corners[-1] + widths[-1])
        slopes = torch.stack([slope[place] for slope in readout], -1)
        return (grads[0] * slopes).sum(-1) * inside, None, None, None, None, None


def staircase(
    argument: Tensor, corners: Tensor, widths: Tensor, readout: Tensor, offset: Tensor, levels: int
) -> Tensor:
    """Readouts ``[…, R]`` of ``argument`` ``[…]``, its neurons (``corners``, ``widths`` ``[N]``) rounded to ``levels``.

    Straight-through gradient: the slope of the segment, 0 outside of the range.
    """
    return _Staircase.apply(argument, corners, widths, readout, offset, levels)


def active(argument: Tensor, corners: Tensor, widths: Tensor) -> Tensor:
    """How many neurons of one level are full, ``[…]``: those whose segment's middle the argument has reached."""
    return torch.bucketize(argument.contiguous(), corners + widths / 2, right=True)


def one_level_spikes(rows: Tensor, corners: Tensor, widths: Tensor) -> Tensor:
    """Ternary spikes ``[T, …, N]`` (int8) of neurons of one level that follow ``rows`` ``[T, …]`` from rest."""
    count = active(rows, corners, widths).to(torch.int8)
    numbers = torch.arange(len(corners), dtype=torch.int8, device=rows.device)
    full = count.unsqueeze(-1) > numbers
    before = torch.cat([torch.zeros_like(full[:1]), full[:-1]])
    return full.to(torch.int8) - before.to(torch.int8)
