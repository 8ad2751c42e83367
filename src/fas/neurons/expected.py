"""How many spikes a value will cost, before there is time: what a spike budget in Stage 1 is taken from.

A neuron that tracks a constant value of code n fires S(n) times: |n|·T/L (rate), or as often as its schedule moves, with the
dead zone that Stage 2 finds where spikes have a price (sigma_delta; 4 may cost one spike where 3 costs two). Between two codes
the count is interpolated, so that it has a gradient with respect to the value and to λ.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fas.config import SpikingConfig
from fas.neurons.sigma_delta import dead_zones, sigma_delta

DEAD_ZONE = 0.25
"""Of all timesteps but the last: what Stage 2 most often takes."""


@lru_cache(maxsize=64)
def _spikes_of_codes(levels: int, timesteps: int, steps: tuple[int, ...]) -> tuple[float, ...]:
    codes = torch.arange(levels + 1, dtype=torch.float64)
    if not steps:
        return tuple((codes * timesteps / levels).tolist())
    half, zero = torch.full_like(codes, 0.5), torch.zeros_like(codes)
    # λ = L, so that a code is its value; the whole signal is there at t = 1
    rows, scale, zones = codes.expand(timesteps, -1), torch.full_like(codes, levels), dead_zones(len(steps), DEAD_ZONE)
    _, spikes = sigma_delta(rows, scale, half, zero, steps, levels, False, zones)
    return tuple(spikes.count_nonzero(0).double().tolist())


def spikes_of_codes(config: SpikingConfig, levels: int) -> tuple[float, ...]:
    """S(0) … S(L) of constant inputs in ``config``'s coding and time, on a grid of ``levels``."""
    steps = tuple(config.step_schedule) if config.coding == "sigma_delta" and config.folds_time else ()
    timesteps = config.timesteps if config.folds_time else levels
    return _spikes_of_codes(levels, timesteps, steps)


def expected_spikes(x: Tensor, scale: Tensor, signed: bool, counts: tuple[float, ...]) -> Tensor:
    """Spikes that each value of ``x`` ``[…, C]`` will cost on the grid of ``scale`` ``[C]``; differentiable in both.

    ``counts`` are S(0) … S(L). Values beyond the grid cost S(L), and a gradient does not reach them.
    """
    levels = len(counts) - 1
    code = x / (scale / levels)
    code = (code.abs() if signed else code).clamp(0, levels)
    table = torch.tensor(counts, dtype=x.dtype, device=x.device)
    low = code.detach().floor().clamp(max=levels - 1).long()
    floor = table[low]
    return floor + (code - low) * (table[low + 1] - floor)
