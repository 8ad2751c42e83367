"""The exponential of attention scores at rest: one table of all its values, because it is asked for every score.

A group of N equally wide neurons of one level splits every octave of 2^{−u} into N + 1 values; readout and shift together
make one value of a table ``[octaves, N + 1]``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fas.neurons import pieces
from fas.offloading import at_hand
from fas.operators.group import read
from fas.operators.ranges import LAST_OCTAVE
from fas.operators.spiking import SpikingGroup

ELSEWHERE = 1 << 24
"""Scores that a GPU looks up at a time; a CPU takes as many as it takes neurons. Beside them are five tensors as large."""


def exp2_table(group: SpikingGroup, like: Tensor) -> Tensor:
    """2^{−u} ``[LAST_OCTAVE + 1, N + 1]``, by octave and by how far u is inside it (in N-ths)."""
    size = group.corners.shape[0]
    full = torch.arange(size + 1, device=like.device)[:, None] > torch.arange(size, device=like.device)
    readouts = at_hand(group, "readout"), at_hand(group, "readout_offset")
    even, odd = read(full.to(like.dtype) * group.site.scale.to(like), *readouts).unbind(-1)
    octaves = torch.arange(LAST_OCTAVE + 1, device=like.device)
    values = torch.where(octaves[:, None] % 2 == 0, even, odd.flip(0)) * (-octaves[:, None].to(like.dtype)).exp2()
    values[LAST_OCTAVE] = 0
    return values


class _Exp2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, table: Tensor) -> Tensor:
        size, flat = table.shape[1] - 1, u.reshape(-1)
        values = torch.empty_like(flat)
        piece = pieces.PIECE if u.device.type == "cpu" else ELSEWHERE
        for some, found in zip(flat.split(piece), values.split(piece), strict=True):
            some = some.clamp(0, LAST_OCTAVE)
            octave = some.floor()
            place = octave * (size + 1) + ((some - octave) * size + 0.5).floor()
            torch.index_select(table.flatten(), 0, place.to(torch.int32), out=found)
        values = values.view(u.shape)
        ctx.save_for_backward(values)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0] * -math.log(2), None


def exp2_at_rest(u: Tensor, group: SpikingGroup) -> Tensor:
    """2^{−u} of ``u`` ≥ 0 by the resting ``group`` (any shape); the gradient is that of 2^{−u} where the group stands."""
    return _Exp2.apply(u, exp2_table(group, u))
