"""The sigma-delta neuron: a tracking quantizer with limited slew (DESIGN §3; unit steps: ST-BIF+, SpikeZIP-TF).

In units of λ/L, with the input z_t clipped to the grid and a step schedule k_t of powers of two:

    d_t = clip(floor((z_t − a_{t−1})/k_t + v₀), −1, 1),   a_t = a_{t−1} + k_t·d_t

A spike that would leave the grid is suppressed, never cut, so that what is recorded is what moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fas.neurons.qcfs import grid
from fas.neurons.surrogate import ternary_spike


def sigma_delta(
    rows: Tensor,
    threshold: Tensor,
    v_init: Tensor,
    a_init: Tensor,
    steps: Sequence[int] | Sequence[Tensor],
    levels: int,
    signed: bool,
) -> tuple[Tensor, Tensor]:
    """Track the running value ``rows`` ``[T, …, C]``; returns (output rows a_t·θ/L, spikes d_t), both ``[T, …, C]``.

    ``threshold`` θ ``[C]`` has the unit of the rows, ``v_init`` ``[C]`` is the rounding offset (default ½),
    ``a_init`` ``[C]`` the integer start in units of θ/L (default 0), a constant bias for the consumers and no spike.
    """
    low, high = grid(levels, signed)
    unit = threshold / levels
    target = (rows / unit).clamp(low, high)
    state = a_init.expand_as(target[0])
    states, spikes = [], []
    for goal, k in zip(target.unbind(0), steps, strict=True):
        spike = ternary_spike((goal - state) / k + v_init, signed=True)
        moved = state + k * spike
        stays = (moved >= low) & (moved <= high)
        spike = torch.where(stays, spike, torch.zeros_like(spike))
        state = state + k * spike
        states.append(state)
        spikes.append(spike)
    return torch.stack(states) * unit, torch.stack(spikes)
