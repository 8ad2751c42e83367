"""The sigma-delta neuron: a tracking quantizer with limited slew (DESIGN §3; unit steps: ST-BIF+, SpikeZIP-TF).

In units of λ/L, with the input z_t clipped to the grid and a step schedule k_t of powers of two:

    u_t = (z_t − a_{t−1})/k_t + v₀,   d_t = [u_t ≥ 1 + δ_t] − [u_t < −δ_t],   a_t = a_{t−1} + k_t·d_t

Without a dead zone δ_t (0 ≤ δ_t ≤ ½) that is d_t = clip(floor(u_t), −1, 1): a neuron fires as soon as a spike brings it nearer.
With one it waits until that is worth a spike: 1 costs one spike of the step 1, not +2 and −1 (docs/log.md, 2026-11-25).

A spike that would leave the grid is suppressed, never cut, so that what is recorded is what moved. Where a schedule has P·T
steps, P neurons share a channel: within a timestep they fire one after the other, each on what those before it have left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fas.neurons.qcfs import grid
from fas.neurons.surrogate import ternary_spike

PIECE = 1 << 17
"""Values that are tracked through time together on a CPU."""

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
) -> tuple[Tensor, Tensor]:
    """Track the running value ``rows`` ``[T, …, C]``; returns output rows a_t·θ/L ``[T, …, C]``, spikes d ``[P·T, …, C]``.

    ``threshold`` θ ``[C]`` has the unit of the rows, ``v_init`` ``[C]`` is the rounding offset (default ½),
    ``a_init`` ``[C]`` the integer start in units of θ/L (default 0), a constant bias for the consumers and no spike. ``steps``
    are P·T, those of a timestep together; ``dead_zone`` δ as many, in units of the step (none: 0).
    """
    unit, zones = threshold / levels, [float(zone) for zone in dead_zone] or [0.0] * len(steps)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (rows, threshold, v_init)):
        return _differentiable(rows, unit, v_init, a_init, steps, grid(levels, signed), zones)
    return _in_place(rows, unit, v_init, a_init, steps, grid(levels, signed), zones)


def _differentiable(
    rows: Tensor,
    unit: Tensor,
    v_init: Tensor,
    a_init: Tensor,
    steps: Steps,
    bounds: tuple[int, int],
    zones: list[float],
) -> tuple[Tensor, Tensor]:
    """With the surrogate gradient."""
    low, high = bounds
    target = (rows / unit).clamp(low, high)
    state = a_init.expand_as(target[0])
    states, spikes = [], []
    each = len(steps) // len(rows)
    for micro, k in enumerate(steps):
        u = (target[micro // each] - state) / k + v_init
        if zones[micro]:  # moves both bounds outwards, exactly where the zone is in eighths
            u = u - zones[micro] * torch.where(u.detach() >= 0.5, 1, -1)
        spike = ternary_spike(u, signed=True)
        moved = state + k * spike
        stays = (moved >= low) & (moved <= high)
        spike = torch.where(stays, spike, torch.zeros_like(spike))
        state = state + k * spike
        spikes.append(spike)
        if (micro + 1) % each == 0:
            states.append(state)
    return torch.stack(states) * unit, torch.stack(spikes)


def _in_place(
    rows: Tensor,
    unit: Tensor,
    v_init: Tensor,
    a_init: Tensor,
    steps: Steps,
    bounds: tuple[int, int],
    zones: list[float],
) -> tuple[Tensor, Tensor]:
    """The same values without a gradient, a piece that fits the processor's cache after the other."""
    low, high = bounds
    flat = rows.detach().flatten(1)
    outputs = torch.empty(rows.shape, dtype=torch.promote_types(rows.dtype, unit.dtype), device=rows.device)
    spikes = outputs.new_empty(len(steps), *rows.shape[1:])
    width, size, each = rows.shape[-1], flat.shape[1], len(steps) // len(rows)
    piece = size if rows.device.type != "cpu" else max(1, PIECE // width) * width
    constants = [c.to(outputs.dtype).repeat(-(-min(piece, size) // width)) for c in (unit, v_init, a_init)]
    for start in range(0, size, piece):
        part = slice(start, min(start + piece, size))
        unit, v_init, state = (c[: part.stop - start] for c in constants)
        targets = (flat[:, part] / unit).clamp_(low, high)
        out, fired = outputs.view(len(flat), -1)[:, part], spikes.view(len(spikes), -1)[:, part]
        for micro, (spike, k) in enumerate(zip(fired, steps, strict=True)):
            torch.sub(targets[micro // each], state, out=spike).mul_(1 / k).add_(v_init)
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
                torch.mul(state, unit, out=out[micro // each])
    return outputs, spikes
