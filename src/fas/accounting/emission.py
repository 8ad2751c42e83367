"""Spikes of one encoding, believed only after they were checked against the rows that the consumers are handed.

What a site hands on are running values; what it tells a probe are spikes. `check` builds the rows again from the spikes: at
every timestep ``unit·(a₀ + Σ k·s)`` (sigma_delta), ``θ·Σ s / t`` (rate, mean rows) or ``θ·s`` (step rows), s ∈ {−1, 0, 1}
and k a power of two. Rows that differ by more than rounding are no spikes, whatever was told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fas.neurons import Held, Site
from fas.operators.group import read
from fas.operators.population import Population
from fas.operators.spiking import SpikingGroup
from fas.operators.staircase import look_up, sums
from fas.runtime.spikes import by_timestep

PIECE = 1 << 17
"""Values checked at a time: they stay in the cache, and nothing as large as the rows is made."""


@dataclass
class Emission:
    """What one encoding handed to its consumers."""

    site: str
    elements: int
    """Values of one timestep ``B·…·C``: to scale the counts where consumers read copies (grouped queries)."""
    by_timestep: tuple[int, ...]
    """Non-zero spikes of each timestep ``[T]``, of every row that was executed: padding and replayed keys included."""
    shifted: int
    """Spikes among them that are worth more than 1."""
    updates: int
    """Neuron updates: neurons × timesteps."""
    by_channel: Tensor | None = None
    """Non-zero spikes of each channel ``[C]``."""
    constant: bool = False
    """Whether its consumers add a constant beside the spikes."""

    @property
    def spikes(self) -> int:
        """All timesteps together."""
        return sum(self.by_timestep)


def emission_of(site: Site, spikes: Tensor, neurons: int, elements: int, counted: Tensor | None = None) -> Emission:
    """Count ``spikes`` ``[T, B, …, C·P]`` of a site with P = ``neurons`` a channel; ``counted`` ``[B, …, 1]`` leaves out
    what is not executed (keys that a settled cache holds)."""
    counts = _counts(spikes, counted)
    updated = spikes[0].numel() if counted is None else int(torch.count_nonzero(counted.expand(spikes[0].shape)))
    return Emission(
        site.name,
        elements,
        tuple(counts.sum(1).tolist()),
        _shifted(site, counts, neurons),
        updated * len(spikes),
        counts.sum(0).unflatten(0, (-1, neurons)).sum(1),
        site.adds_constant(site.clock.config),
    )


def emission_held(site: Site, held: Held, elements: int, counted: Tensor | None = None) -> Emission:
    """As `emission_of` of the spikes that ``held`` stands for."""
    steps = held.steps
    if counted is not None:
        steps = steps * counted
    updated = steps[0].numel() if counted is None else int(torch.count_nonzero(counted.expand(steps[0].shape)))
    counts = tuple(by_timestep(steps).tolist())
    return Emission(site.name, elements, counts, 0, updated * held.each * len(steps), held.by_neuron(counted).cpu())


def _counts(spikes: Tensor, counted: Tensor | None) -> Tensor:
    """Non-zero ``spikes`` ``[T, …, N]`` of each timestep and neuron ``[T, N]``; ``counted`` ``[…, 1]`` leaves others out."""
    found = torch.zeros(len(spikes), spikes.shape[-1], dtype=torch.int64, device=spikes.device)
    for total, step in zip(found, spikes, strict=True):
        fired = step if counted is None else step * counted
        for part in fired.flatten(0, -2).split(max(1, PIECE // fired.shape[-1])):
            # exact, and much faster than a sum of booleans
            total += part.abs().sum(0, dtype=torch.float32).to(torch.int64)
    return found.cpu()


def _shifted(site: Site, counts: Tensor, neurons: int) -> int:
    config = site.clock.config
    if config.coding != "sigma_delta" or not site.clock.folds:
        return 0
    steps = torch.tensor([int(k) for k in site.steps_for(config)]).view(len(counts), 1, neurons)
    return int((counts.unflatten(-1, (-1, neurons)) * (steps > 1)).sum())


def neurons_each(site: Site, spikes: Tensor) -> int:
    """P: how many neurons encode a channel."""
    return spikes.shape[-1] // site.width


def check_site(site: Site, spikes: Tensor, rows: Tensor) -> bool:
    """Whether ``rows`` ``[T·B, …, C]`` (layerwise: ``[B, …, C]``) are what ``spikes`` ``[T, B, …, C·P]`` add up to."""
    config = site.clock.config
    threshold, _, a_init = (value.detach() for value in site.neuron_values(config))
    if not site.clock.folds:
        return _check(spikes, rows.unsqueeze(0), site.scale.detach() / site.levels, 0, _sums_at_end)
    rows = site.over_time(rows)
    if (constant := site.constant_for(config)) is not None:
        rows = rows - constant
    if config.coding == "sigma_delta":
        neurons = neurons_each(site, spikes)
        steps = torch.tensor([int(k) for k in site.steps_for(config)]).view(len(spikes), neurons)
        if any(math.log2(k) % 1 for k in steps.flatten().tolist()):
            return False
        return _check(spikes, rows, threshold / site.levels, a_init, _weighted(steps.tolist()))
    return _check(spikes, rows, threshold, 0, _means if config.rows == "mean" else _singles)


Sums = Callable[[Tensor], Tensor]


def _check(spikes: Tensor, rows: Tensor, unit: Tensor, start: Tensor | int, sums: Sums) -> bool:
    """Compare piece by piece; ``unit`` and ``start`` are ``[C]``."""
    channels = rows.shape[-1]
    spikes, rows = spikes.flatten(1, -2), rows.flatten(1, -2)  # [T, M, C·P], [T, M, C]
    wide = torch.promote_types(rows.dtype, torch.float32)
    unit = unit.to(wide)
    size = max(1, PIECE // max(1, channels * len(rows)))
    for told, found in zip(spikes.split(size, 1), rows.split(size, 1), strict=True):
        if any(abs(float(end)) > 1 for end in torch.aminmax(told)):
            return False
        if not _near(sums(told) + start, found.to(wide), unit, rows.dtype):
            return False
    return True


def _weighted(steps: Sequence[Sequence[int]]) -> Sums:
    def sums(spikes: Tensor) -> Tensor:
        worth = torch.tensor(steps, dtype=torch.int32, device=spikes.device)  # [T, P]
        if worth.shape[1] == 1:
            return (spikes * worth[:, None]).cumsum(0, dtype=torch.int32)
        return (spikes.unflatten(-1, (-1, worth.shape[1])) * worth[:, None, None]).sum(-1).cumsum(0)

    return sums


def _means(spikes: Tensor) -> Tensor:
    times = torch.arange(1, len(spikes) + 1, device=spikes.device).view(-1, 1, 1)
    return spikes.cumsum(0, dtype=torch.int32) / times


def _singles(spikes: Tensor) -> Tensor:
    return spikes.to(torch.int32)


def _sums_at_end(spikes: Tensor) -> Tensor:
    return spikes.sum(0, keepdim=True, dtype=torch.int32)


def check_group(group: SpikingGroup, told: Tensor | Held, out: Tensor) -> bool:
    """Whether the readouts ``out`` ``[T·B, …, R]`` of a group are those of its spikes ``[T, B, …, N]``, or what it held."""
    if isinstance(told, Held):
        table = sums(group.site.scale.detach(), group.readout, group.readout_offset)
        both = zip(told.numbers.squeeze(-1), group.site.over_time(out), strict=True)
        return all(_same(look_up(numbers, table), found) for numbers, found in both)
    spikes = told
    widths, readout, offset = group.site.scale.detach(), group.readout, group.readout_offset
    rows = group.site.over_time(out).flatten(1, -2) if group.site.clock.folds else out.unsqueeze(0).flatten(1, -2)
    spikes = spikes.flatten(1, -2)
    if not group.site.clock.folds:
        spikes = spikes.sum(0, keepdim=True, dtype=torch.int32)
    unit = (widths / group.site.levels).to(rows.dtype)
    size = max(1, PIECE // (len(group.corners) * len(rows)))
    for part, found in zip(spikes.split(size, 1), rows.split(size, 1), strict=True):
        if not _same(read(part.cumsum(0, dtype=torch.int32) * unit, readout, offset), found):
            return False
    return True


def _same(expected: Tensor, found: Tensor) -> bool:
    allowed = found.abs().mul_(1e-4).add_(1e-5)
    return bool((expected.to(found.dtype).sub_(found).abs_() <= allowed).all())


def check_population(population: Population, told: Tensor | Held, out: Tensor) -> bool:
    """Whether ``out`` ``[T·B, …, C]`` of a population is what its ON and OFF neurons hold, by their spikes or as told."""
    site = population.site
    rows = site.over_time(out) if site.clock.folds else out.unsqueeze(0)
    unit = site.log_scale.detach().exp().expand(rows.shape[-1]) / site.levels
    if isinstance(told, Held):
        return all(_near(numbers, found, unit, rows.dtype) for numbers, found in zip(told.numbers, rows, strict=True))
    on, off = told.unflatten(-1, (2, population.neurons, -1)).sum(-2, dtype=torch.int32).unbind(-2)
    return _check_values(on - off, rows, unit, site)


def _check_values(spikes: Tensor, rows: Tensor, unit: Tensor, site: Site) -> bool:
    """As `_check`, for what several neurons hold together: changes of any size."""
    total = spikes.cumsum(0, dtype=torch.int32) if site.clock.folds else spikes.sum(0, keepdim=True, dtype=torch.int32)
    return _near(total, rows, unit, rows.dtype)


def _near(units: Tensor, rows: Tensor, unit: Tensor, dtype: torch.dtype) -> bool:
    """Whether ``rows`` are ``units`` × ``unit`` but for a thousandth of a unit and the rounding of ``dtype``."""
    expected = units * unit.to(torch.promote_types(rows.dtype, torch.float32))
    apart = (rows - expected).abs_()
    if bool((apart <= 1e-3 * unit).all()):
        return True
    return bool((apart <= expected.abs() * 4 * torch.finfo(dtype).eps + 1e-3 * unit).all())
