"""A unit that gives what a spiking neuron gave: value of the neuron, gradient of QCFS.

With it the network of B rows is, in its values, the last timestep of the spiking one, and has the straight-through gradient
that Stage 1 uses: weights then learn the temporal error, which is a noise to them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fas.neurons.qcfs import grid


class _Forced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, value: Tensor, levels: int, signed: bool) -> Tensor:
        ctx.save_for_backward(x, threshold, value)
        ctx.levels, ctx.signed = levels, signed
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, threshold, value = ctx.saved_tensors
        low, high = grid(ctx.levels, ctx.signed)
        share = x / threshold
        inside = (share >= low / ctx.levels) & (share <= high / ctx.levels)
        by_threshold = value / threshold - torch.where(inside, share, 0)
        return grads[0] * inside, (grads[0] * by_threshold).sum_to_size(threshold.shape), None, None, None


def forced(x: Tensor, threshold: Tensor, value: Tensor, levels: int, signed: bool) -> Tensor:
    """``value`` ``[…, C]`` with the gradient of `qcfs` for ``x`` ``[…, C]`` and its threshold θ ``[C]``."""
    return _Forced.apply(x, threshold, value, levels, signed)
