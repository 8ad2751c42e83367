"""Soft-reset integrate-and-fire, unsigned and signed (Bu 2022; bipolar IF).

With the charge received so far q_t = Σ_{u≤t} x_u and the net spike count N_{t−1}, the potential before firing is
v_t = v₀ + q_t − θ·N_{t−1}; the neuron emits +1 if v_t ≥ θ, −1 if v_t < 0 (signed only). Written by the running total
the membrane collects no rounding, and N_T = floor((q_T + v₀)/θ) whenever every x_t lies in [0, θ] (unsigned) or
[−θ, θ] (signed).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fas.neurons.fused import kernels_for
from fas.neurons.pieces import BACKWARD, pieces
from fas.neurons.surrogate import ternary_slope


def rate_mean_rows(
    rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, told: bool = True
) -> tuple[Tensor, Tensor]:
    """Rows that carry the running mean m_t: q_t = t·m_t in, θ·N_t/t out. Returns (rows, spikes), ``[T, …, C]``.

    ``threshold`` θ ``[C]`` is in the units of the charge, ``v_init`` ``[C]`` in units of θ (default ½). Output rows have a
    gradient, back through time with the surrogate `ternary_slope`, and the dtype of ``rows`` (arithmetic is in fp32 or wider).
    Where nobody is ``told`` of spikes, they may be left empty.
    """
    return _IntegrateAndFire.apply(rows, threshold, v_init, signed, True, told)


def rate_step_rows(
    rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, told: bool = True
) -> tuple[Tensor, Tensor]:
    """Rows that carry one step's charge x_t (the paper's way): θ·s_t out. Returns (output rows, spikes) as `rate_mean_rows`."""
    return _IntegrateAndFire.apply(rows, threshold, v_init, signed, False, told)


class _IntegrateAndFire(torch.autograd.Function):
    """Keeps its input alone: what a neuron went through is computed again where a gradient asks for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, mean: bool, told: bool) -> Any:
        ctx.save_for_backward(rows, threshold, v_init)
        ctx.signed, ctx.mean = signed, mean
        kernels = kernels_for(rows, threshold, v_init)
        if kernels is None:
            outputs, spikes = _rows(rows, threshold, v_init, signed, mean)
        else:
            outputs, spikes = kernels.fire(rows, threshold, v_init, signed, mean, told)
        ctx.mark_non_differentiable(spikes)
        return outputs, spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, threshold, v_init = ctx.saved_tensors  # once: a checkpoint computes them again each time
        kernels = kernels_for(rows, threshold, v_init)
        gradients = _gradients if kernels is None else kernels.fire_back
        return *gradients(grads[0], rows, threshold, v_init, ctx.signed, ctx.mean), None, None, None


def _rows(rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, mean: bool) -> tuple[Tensor, Tensor]:
    """Output rows and spikes, a piece that fits the processor's cache after the other."""
    outputs = torch.empty(rows.shape, dtype=torch.promote_types(rows.dtype, threshold.dtype), device=rows.device)
    flat, spikes = rows.flatten(1).to(outputs.dtype), torch.empty_like(outputs)
    for part, (theta, offset) in pieces(flat, rows.shape[-1], (threshold, v_init), outputs.dtype):
        out, fired = (x.view(len(flat), -1)[:, part] for x in (outputs, spikes))
        fired.copy_(_fire(_charge(flat[:, part], mean).div_(theta).add_(offset), signed))
        if mean:
            torch.cumsum(fired, 0, out=out).div_(running_time(len(flat), out)).mul_(theta)
        else:
            torch.mul(fired, theta, out=out)
    return outputs.to(rows.dtype), spikes


def _fire(potential: Tensor, signed: bool) -> Tensor:
    """Spikes of v₀ + q_t/θ ``[T, …]``."""
    count, spikes = torch.zeros_like(potential[0]), torch.empty_like(potential)
    for level, spike in zip(potential.unbind(0), spikes.unbind(0), strict=True):
        left = level - count
        torch.ge(left, 1, out=spike)
        if signed:
            spike.masked_fill_(left < 0, -1)
        count += spike
    return spikes


def _charge(rows: Tensor, mean: bool) -> Tensor:
    """q_t of rows ``[T, …]``."""
    return rows * running_time(len(rows), rows) if mean else rows.cumsum(0)


def _gradients(
    grad: Tensor, rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows, θ and v₀."""
    grad = grad.flatten(1).to(torch.promote_types(grad.dtype, threshold.dtype))
    flat, width = rows.flatten(1).to(grad.dtype), rows.shape[-1]
    by_rows = torch.empty(flat.shape, dtype=grad.dtype, device=flat.device)
    by_threshold, by_v_init = (grad.new_zeros(width) for _ in range(2))
    time = running_time(len(flat), grad)
    for part, (theta, offset) in pieces(flat, width, (threshold, v_init), grad.dtype, BACKWARD):
        charge = _charge(flat[:, part], mean).div_(theta)
        potential = charge + offset
        spikes = _fire(potential, signed)
        counts = spikes.cumsum(0)
        given = grad[:, part] / time if mean else grad[:, part]
        on_theta = (given * (counts if mean else spikes)).sum(0)
        back = torch.zeros_like(offset)  # ∂/∂N_t, through all later timesteps
        on_potential = torch.empty_like(potential)
        for t in reversed(range(len(flat))):
            on_spike = torch.addcmul(back, given[t], theta)
            slope = ternary_slope(potential[t] - counts[t - 1] if t else potential[t], signed)
            torch.mul(on_spike, slope, out=on_potential[t])
            back = (on_spike if mean else back) - on_potential[t]
        on_theta -= (on_potential * charge).sum(0).div_(theta)
        by_threshold += on_theta.view(-1, width).sum(0)
        by_v_init += on_potential.sum(0).view(-1, width).sum(0)
        on_charge = on_potential.div_(theta)
        by_rows[:, part] = on_charge * time if mean else on_charge.flip(0).cumsum(0).flip(0)
    by_threshold, by_v_init = by_threshold.sum_to_size(threshold.shape), by_v_init.sum_to_size(v_init.shape)
    return by_rows.view_as(rows).to(rows.dtype), by_threshold.to(threshold.dtype), by_v_init.to(v_init.dtype)


def running_time(timesteps: int, like: Tensor) -> Tensor:
    """1 … T as ``[T, 1, …]`` with the dtype, device and number of axes of ``like``."""
    time = torch.arange(1, timesteps + 1, dtype=like.dtype, device=like.device)
    return time.view(-1, *[1] * (like.ndim - 1))
