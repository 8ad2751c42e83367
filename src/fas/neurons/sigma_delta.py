"""The sigma-delta neuron: a tracking quantizer with limited slew (unit steps: ST-BIF+, SpikeZIP-TF).

In units of λ/L, with the input z_t clipped to the grid and a step schedule k_t of powers of two:

    u_t = (z_t − a_{t−1})/k_t + v₀,   d_t = [u_t ≥ 1 + δ_t] − [u_t < −δ_t],   a_t = a_{t−1} + k_t·d_t

Without a dead zone δ_t (0 ≤ δ_t ≤ ½) that is d_t = clip(floor(u_t), −1, 1): a neuron fires as soon as a spike brings it nearer.
With one it waits until that is worth a spike: 1 costs one spike of the step 1, not +2 and −1 (docs/log.md, 2026-11-25).

A spike that would leave the grid is suppressed, never cut, so that what is recorded is what moved. Where a schedule has P·T
steps, P neurons share a channel: within a timestep they fire one after the other, each on what those before it have left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fas.neurons.fused import kernels_for
from fas.neurons.pieces import BACKWARD, pieces
from fas.neurons.qcfs import grid
from fas.neurons.surrogate import ternary_slope

Steps = Sequence[int] | Sequence[Tensor]
Zones = Sequence[float] | Sequence[Tensor]


def dead_zones(steps: int, zone: float, last: float = 0.0) -> tuple[float, ...]:
    """The same dead zone in all of ``steps`` but the last, which has to round.

    >>> dead_zones(3, 0.25)
    (0.25, 0.25, 0.0)
    """
    return (*[zone] * (steps - 1), last)


def sigma_delta(
    rows: Tensor,
    threshold: Tensor,
    v_init: Tensor,
    a_init: Tensor,
    steps: Steps,
    levels: int,
    signed: bool,
    dead_zone: Zones = (),
    told: bool = True,
) -> tuple[Tensor, Tensor]:
    """Track the running value ``rows`` ``[T, …, C]``; returns output rows a_t·θ/L ``[T, …, C]`` of the dtype of ``rows``
    (arithmetic is in fp32 or wider), and spikes d ``[P·T, …, C]``.

    ``threshold`` θ ``[C]`` has the unit of the rows, ``v_init`` ``[C]`` is the rounding offset (default ½),
    ``a_init`` ``[C]`` the integer start in units of θ/L (default 0), a constant bias for the consumers and no spike. ``steps``
    are P·T, those of a timestep together; ``dead_zone`` δ as many, in units of the step (none: 0). Where nobody is ``told``
    of spikes, they may be left empty.
    """
    zones = [float(zone) for zone in dead_zone] or [0.0] * len(steps)
    worth = [float(k) for k in steps]
    return _SigmaDelta.apply(rows, threshold / levels, v_init, a_init, told, worth, grid(levels, signed), zones)


class _SigmaDelta(torch.autograd.Function):
    """Keeps its input alone: what a neuron went through is computed again where a gradient asks for it."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, unit: Tensor, v_init: Tensor, a_init: Tensor, told: bool, *settings: Any
    ) -> Any:
        ctx.save_for_backward(rows, unit, v_init, a_init)
        ctx.settings = settings
        kernels = kernels_for(rows, unit, v_init, a_init)
        if kernels is None:
            outputs, spikes = _track(rows, unit, v_init, a_init, *settings)
        else:
            outputs, spikes = kernels.track(rows, unit, v_init, a_init, *settings, want=told)
        ctx.mark_non_differentiable(spikes)
        return outputs, spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint computes them again each time
        kernels = kernels_for(*saved)
        gradients = _gradients if kernels is None else kernels.track_back
        return *gradients(grads[0], *saved, *ctx.settings), None, None, None, None, None


def _track(
    rows: Tensor,
    unit: Tensor,
    v_init: Tensor,
    a_init: Tensor,
    steps: list[float],
    bounds: tuple[int, int],
    zones: list[float],
) -> tuple[Tensor, Tensor]:
    """Output rows and spikes, a piece that fits the processor's cache after the other."""
    low, high = bounds
    flat = rows.flatten(1)
    outputs = torch.empty(rows.shape, dtype=torch.promote_types(rows.dtype, unit.dtype), device=rows.device)
    spikes = outputs.new_empty(len(steps), *rows.shape[1:])
    each = len(steps) // len(rows)
    for part, (size, offset, state) in pieces(flat, rows.shape[-1], (unit, v_init, a_init), outputs.dtype):
        targets = (flat[:, part] / size).clamp_(low, high)
        out, fired = outputs.view(len(flat), -1)[:, part], spikes.view(len(spikes), -1)[:, part]
        for micro, (spike, k) in enumerate(zip(fired, steps, strict=True)):
            torch.sub(targets[micro // each], state, out=spike).mul_(1 / k).add_(offset)
            if zones[micro]:
                torch.sub(
                    (spike >= 1 + zones[micro]).to(spike.dtype), (spike < -zones[micro]).to(spike.dtype), out=spike
                )
            else:
                spike.floor_().clamp_(-1, 1)
            moved = state + spike * k
            outside = (moved < low).logical_or_(moved > high)
            spike.masked_fill_(outside, 0)
            state = torch.where(outside, state, moved)
            if (micro + 1) % each == 0:
                torch.mul(state, size, out=out[micro // each])
    return outputs.to(rows.dtype), spikes


def _gradients(
    grad: Tensor,
    rows: Tensor,
    unit: Tensor,
    v_init: Tensor,
    a_init: Tensor,
    steps: list[float],
    bounds: tuple[int, int],
    zones: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows, the unit θ/L and v₀, back through time; a suppressed spike hands nothing on."""
    low, high = bounds
    flat, grad = rows.flatten(1), grad.flatten(1).to(torch.promote_types(grad.dtype, unit.dtype))
    by_rows = torch.empty(flat.shape, dtype=grad.dtype, device=flat.device)
    width, each = rows.shape[-1], len(steps) // len(rows)
    by_unit, by_v_init = (grad.new_zeros(width) for _ in range(2))
    for part, (size, offset, start) in pieces(flat, width, (unit, v_init, a_init), grad.dtype, BACKWARD):
        ratio = flat[:, part] / size
        targets = ratio.clamp(low, high)
        states, slopes = _states(targets, offset, start, steps, bounds, zones)
        back = torch.zeros_like(offset)  # ∂/∂a_t, from all later timesteps
        on_unit, on_v_init = torch.zeros_like(back), torch.zeros_like(back)
        for t in reversed(range(len(rows))):
            back += grad[t, part] * size
            on_unit += grad[t, part] * states[t]
            on_target = torch.zeros_like(back)
            for micro in reversed(range(t * each, (t + 1) * each)):
                on_u = (back * slopes[micro]).mul_(steps[micro])
                on_v_init += on_u
                on_u /= steps[micro]
                on_target += on_u
                back -= on_u
            on_target.mul_((ratio[t] >= low) & (ratio[t] <= high)).div_(size)
            by_rows[t, part] = on_target
            on_unit -= on_target * ratio[t]
        by_unit += on_unit.view(-1, width).sum(0)
        by_v_init += on_v_init.view(-1, width).sum(0)
    by_unit, by_v_init = by_unit.sum_to_size(unit.shape), by_v_init.sum_to_size(v_init.shape)
    return by_rows.view_as(rows).to(rows.dtype), by_unit.to(unit.dtype), by_v_init.to(v_init.dtype)


def _states(
    targets: Tensor, offset: Tensor, state: Tensor, steps: list[float], bounds: tuple[int, int], zones: list[float]
) -> tuple[list[Tensor], list[Tensor]]:
    """a_t after every timestep, and ∂d/∂u of every step (0 where its spike was suppressed)."""
    low, high = bounds
    each, states, slopes = len(steps) // len(targets), [], []
    for micro, k in enumerate(steps):
        u = (targets[micro // each] - state).mul_(1 / k).add_(offset)
        if zones[micro]:  # moves both bounds outwards, exactly where the zone is in eighths
            u -= torch.where(u >= 0.5, zones[micro], -zones[micro])
        moved = state + u.floor().clamp_(-1, 1).mul_(k)
        stays = (moved >= low) & (moved <= high)
        state = torch.where(stays, moved, state)
        slopes.append(ternary_slope(u, True).mul_(stays))
        if (micro + 1) % each == 0:
            states.append(state)
    return states, slopes
