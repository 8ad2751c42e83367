"""The ternary spike and its surrogate gradient.

Forward (exact): s(v) = +1 if v ≥ 1, −1 if v < 0 (signed neurons only), else 0, with v in units of the threshold.
Backward: a triangle of half-width 1 around each firing boundary, ds/dv ≈ max(0, 1−|v−1|) + max(0, 1−|v|).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _TernarySpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, signed: bool) -> Tensor:
        ctx.save_for_backward(v)
        ctx.signed = signed
        spikes = (v >= 1).to(v.dtype)
        return spikes - (v < 0).to(v.dtype) if signed else spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        slope = (1 - (v - 1).abs()).clamp(min=0)
        if ctx.signed:
            slope = slope + (1 - v.abs()).clamp(min=0)
        return grads[0] * slope, None


def ternary_spike(v: Tensor, signed: bool) -> Tensor:
    """Spikes {−1, 0, 1} (signed) or {0, 1} of potentials ``v`` (any shape, units of θ), in ``v``'s dtype."""
    return _TernarySpike.apply(v, signed)
