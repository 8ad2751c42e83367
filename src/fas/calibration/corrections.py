"""Closed-form corrections of one site, from the mean of its error over tokens (SNN Calibration, Li et al., ICML 2021, "light").

A channel whose neurons fire too seldom on average starts with as much more potential; what is left of its mean error is a
constant, which the bias of the linear layer behind it can absorb. Here each needs the site's recorded input, and no gradient.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fas.calibration.coarse import Choice, Search

ROUNDS = 2


def corrected(search: Search, base: Choice) -> Choice:
    """``base`` with v₀ raised by the spikes that each channel misses on average, θ by what their worth misses; each where it
    helps the channel (weighted squared error over timesteps)."""
    best, least = base, search.errors(base)
    for _ in range(ROUNDS):
        for change in (raised_potential, least_squares_threshold):
            found = change(search, best)
            errors = search.errors(found)
            better = errors < least
            best = replace(
                best,
                threshold=torch.where(better, found.threshold, best.threshold),
                v_init=torch.where(better, found.v_init, best.v_init),
            )
            least = torch.minimum(errors, least)
    return best


def raised_potential(search: Search, base: Choice) -> Choice:
    """v₀ + E[b − a]/θ·T of a rate code (an average spike more for each), ·L of a sigma-delta code."""
    count = search.config.timesteps if search.config.coding == "rate" else search.site.levels
    return replace(base, v_init=(base.v_init + missing(search, base) / base.threshold * count).clamp(0.0, 1.0))


def least_squares_threshold(search: Search, base: Choice) -> Choice:
    """θ·⟨a, b⟩/⟨a, a⟩: the worth of the spikes that least squares asks for."""
    power = product = torch.zeros_like(base.threshold)
    for part in search.chunks():
        given = part.outputs(base)[-1]
        power, product = power + given.square().sum(0), product + (given * part.target).sum(0)
    ratio = torch.where(power > 0, product / power.clamp(min=torch.finfo(torch.float32).tiny), 1)
    return replace(base, threshold=base.threshold * ratio.clamp(0.5, 2.0))


def absorbed(search: Search, base: Choice) -> Choice:
    """``base`` and the constant that takes each channel's mean error away: W·constant belongs to the bias behind it."""
    constant = missing(search, base)
    return replace(base, constant=constant if base.constant is None else base.constant + constant)


def missing(search: Search, base: Choice) -> Tensor:
    """E[b − a] of each channel ``[C]`` in the end."""
    total = torch.zeros_like(base.threshold)
    for part in search.chunks():
        total = total + (part.target - part.outputs(base)[-1]).sum(0)
    return total / len(search.target)
