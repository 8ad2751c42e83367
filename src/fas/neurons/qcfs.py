"""QCFS, the quantization–clip–floor–shift unit of Stage 1 (Bu et al., ICLR 2022; FAS, arXiv 2502.04405).

    h(x) = clip(floor(x·L/λ + ½), lo, L) · λ/L,   lo = −L (signed) or 0 (unsigned)

The floor has straight-through gradient, so ∂h/∂x = 1 inside the grid and 0 outside, and ∂h/∂λ = (h − x)/λ inside, ±1
(or 0 at an unsigned lower end) outside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fas.neurons.fused import kernels_for


def grid(levels: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest code: (−L, L) or (0, L)."""
    return (-levels if signed else 0), levels


def codes(x: Tensor, scale: Tensor, levels: int, signed: bool) -> Tensor:
    """Integer codes of ``x`` (``[…, C]``) on the grid of step ``scale``/L (``[C]``), as floating point."""
    low, high = grid(levels, signed)
    return (x / (scale / levels) + 0.5).floor().clamp(low, high)


class _QCFS(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, levels: int, signed: bool) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.levels, ctx.signed = levels, signed
        unit = scale / levels
        if (kernels := kernels_for(x, unit)) is not None:
            return kernels.quantize(x, unit, grid(levels, signed))
        return (codes(x, scale, levels, signed) * unit).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, scale = ctx.saved_tensors
        low, high = grid(ctx.levels, ctx.signed)
        kernels = kernels_for(x, scale)
        if kernels is not None and grads[0].dtype == x.dtype:
            by_x, by_unit = kernels.quantize_back(grads[0], x, scale / ctx.levels, (low, high))
            return by_x, (by_unit / ctx.levels).sum_to_size(scale.shape), None, None
        u = x / (scale / ctx.levels)
        inside = (u >= low) & (u <= high)
        code = (u + 0.5).floor().clamp(low, high)
        by_scale = (code - torch.where(inside, u, 0)) / ctx.levels
        return (grads[0] * inside).to(x.dtype), (grads[0] * by_scale).sum_to_size(scale.shape), None, None


def qcfs(x: Tensor, scale: Tensor, levels: int, signed: bool) -> Tensor:
    """Quantize ``x`` (``[…, C]``) with per-channel ``scale`` λ > 0 (``[C]`` or ``[1]``); shape and dtype of ``x``."""
    return _QCFS.apply(x, scale, levels, signed)
