"""Soft-reset integrate-and-fire, unsigned and signed (peers: Bu 2022; bipolar IF).

With the charge received so far q_t = Σ_{u≤t} x_u and the net spike count N_{t−1}, the potential before firing is
v_t = v₀ + q_t − θ·N_{t−1}; the neuron emits +1 if v_t ≥ θ, −1 if v_t < 0 (signed only). Written by the running total
the membrane collects no rounding, and N_T = floor((q_T + v₀)/θ) whenever every x_t lies in [0, θ] (unsigned) or
[−θ, θ] (signed).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fas.neurons.surrogate import ternary_slope


def integrate_and_fire(charge: Tensor, threshold: Tensor, v_init: Tensor, signed: bool) -> Tensor:
    """Spikes ``[T, …, C]`` for the accumulated charge ``charge`` ``[T, …, C]``.

    ``threshold`` θ ``[C]`` is in the units of the charge, ``v_init`` ``[C]`` in units of θ (default ½). The gradient goes back
    through time with the surrogate `ternary_slope`.
    """
    return _IntegrateAndFire.apply(charge / threshold + v_init, signed)


class _IntegrateAndFire(torch.autograd.Function):
    """Spikes of potentials v₀ + q_t/θ, kept alone: counts are computed again where a gradient asks for them."""

    @staticmethod
    def forward(ctx: Any, potential: Tensor, signed: bool) -> Tensor:
        ctx.save_for_backward(potential)
        ctx.signed = signed
        return _fire(potential, signed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (potential,) = ctx.saved_tensors
        counts = _fire(potential, ctx.signed).cumsum(0)
        back = torch.zeros_like(potential[0])  # ∂/∂N_t through all later potentials
        by_potential = torch.empty_like(potential)
        for t in reversed(range(len(potential))):
            level = potential[t] - counts[t - 1] if t else potential[t]
            torch.mul(grads[0][t] + back, ternary_slope(level, ctx.signed), out=by_potential[t])
            back -= by_potential[t]
        return by_potential, None


def _fire(potential: Tensor, signed: bool) -> Tensor:
    count, spikes = torch.zeros_like(potential[0]), torch.empty_like(potential)
    for level, spike in zip(potential.unbind(0), spikes.unbind(0), strict=True):
        left = level - count
        torch.ge(left, 1, out=spike)
        if signed:
            spike.masked_fill_(left < 0, -1)
        count += spike
    return spikes


def running_time(timesteps: int, like: Tensor) -> Tensor:
    """1 … T as ``[T, 1, …]`` with the dtype, device and number of axes of ``like``."""
    time = torch.arange(1, timesteps + 1, dtype=like.dtype, device=like.device)
    return time.view(-1, *[1] * (like.ndim - 1))


def rate_mean_rows(rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Rows that carry the running mean m_t: q_t = t·m_t in, θ·N_t/t out. Returns (rows, spikes), ``[T, …, C]``."""
    time = running_time(rows.shape[0], rows)
    spikes = integrate_and_fire(rows * time, threshold, v_init, signed)
    return spikes.cumsum(0) / time * threshold, spikes


def rate_step_rows(rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Rows that carry one step's charge x_t (the paper's way): θ·s_t out. Returns (output rows, spikes)."""
    spikes = integrate_and_fire(rows.cumsum(0), threshold, v_init, signed)
    return spikes * threshold, spikes
