"""Whether a sigma-delta neuron has settled: what it can tell from its own residual, with no look into the future.

A neuron is settled at t if, its present input held, none of its remaining steps would fire: for every u > t

    −δ_u ≤ (z_t − a_t)/k_u + v₀ < 1 + δ_u,   or the spike would leave the grid and is suppressed

Once all neurons of a network are settled at the same t nothing changes any more: the first of them sees what it saw, stays
silent, so the next sees what it saw, and so on through the layers and the timesteps that are left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fas.neurons.qcfs import grid
from fas.neurons.sigma_delta import Steps, Zones


def restless(
    rows: Tensor,
    spikes: Tensor,
    threshold: Tensor,
    v_init: Tensor,
    a_init: Tensor,
    steps: Steps,
    levels: int,
    signed: bool,
    dead_zone: Zones = (),
) -> Tensor:
    """Where a neuron would fire again although its input stayed as it is: truth values ``[T, …, C]``, never in the last.

    Arguments as those of `fas.neurons.sigma_delta.sigma_delta`, with the ``spikes`` ``[P·T, …, C]`` that it gave, and in
    its arithmetic, so that both agree on ties.
    """
    (low, high), each = grid(levels, signed), len(steps) // len(rows)
    weights = [int(k) for k in steps]
    zones = [float(zone) for zone in dead_zone] or [0.0] * len(steps)
    worth = torch.tensor(weights, dtype=spikes.dtype, device=spikes.device).view(-1, *[1] * (spikes.ndim - 1))
    states = a_init + (spikes * worth).cumsum(0)[each - 1 :: each]
    distance = (rows / (threshold / levels)).clamp(low, high) - states
    moves = torch.zeros_like(states, dtype=torch.bool)
    last = {setting: micro // each for micro, setting in enumerate(zip(weights, zones, strict=True))}
    for (k, zone), timestep in last.items():  # of equal steps the last one is ahead the longest
        before = slice(timestep)
        u = distance[before] * (1 / k) + v_init
        up = (u >= 1 + zone) & (states[before] + k <= high)
        moves[before] |= up.logical_or_((u < -zone) & (states[before] - k >= low))
    return moves
