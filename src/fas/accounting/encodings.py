"""Sees every encoding: takes the spikes that a site tells, checks them against its rows, and remembers whose rows those are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fas.accounting.count import Counter
from fas.accounting.emission import (
    Emission,
    check_group,
    check_population,
    check_site,
    emission_held,
    emission_of,
    neurons_each,
)
from fas.accounting.own import own_emission
from fas.accounting.provenance import Origin
from fas.neurons import Clock, Held, Site
from fas.neurons.held import tell
from fas.operators.population import Population
from fas.operators.spiking import SpikingGroup
from fas.runtime.memory import return_freed_memory

RETURN_AFTER = 1 << 28
"""Bytes of rows after which memory that was freed goes back to the system."""

INSTEAD = ("exponential", "reciprocal", "softcap")
"""Groups in whose place no module of the ANN runs."""


class Encodings:
    """Probe of the clock (and of the probe that was there before), and hooks on sites, groups and populations."""

    def __init__(self, clock: Clock | None, counter: Counter) -> None:
        self.clock, self.counter = clock, counter
        self.before: Any = None if clock is None else clock.probe
        self.told: dict[str, tuple[Tensor | Held, Tensor | None, Tensor | None]] = {}
        self.inner: dict[str, Emission | None] = {}
        self.by_channel: dict[str, Tensor] = {}
        self.seen_bytes = 0

    def __call__(self, name: str, spikes: Tensor) -> None:
        """Probe of the clock."""
        if self.before is not None:
            self.before(name, spikes)
        self._take(name, spikes)

    def held(self, name: str, held: Held) -> None:
        """The same where neurons say what they hold."""
        if self.before is not None:
            tell(self.before, name, held)
        self._take(name, held)

    def _take(self, name: str, told: Tensor | Held) -> None:
        assert self.clock is not None
        self.told[name] = told, self.clock.visible, self.clock.worth

    def seen(self, name: str, module: nn.Module) -> Callable[..., None]:
        """Forward hook of ``module``."""
        role = name.rsplit(".", 1)[-1]

        def site_hook(site: Site, args: Any, rows: Tensor) -> None:
            if site.name not in self.told:
                return  # QCFS unit: no time, no spikes
            spikes, visible, worth = self.told.pop(site.name)
            assert isinstance(spikes, Tensor)
            emission = self._emission(site, spikes, visible, role, rows)
            own = site.clock.neuron is not None and site.calibrates
            sums = own_emission(site, emission, spikes, worth, rows) if own else check_site(site, spikes, rows)
            honest = emission if sums else self._refuse(site.name)
            self.inner[site.name] = honest
            self._remember(rows, honest)

        def group_hook(group: SpikingGroup, args: Any, out: Tensor) -> None:
            emission = self._resting(group, out, args[0], role, lambda told: check_group(group, told, out))
            if emission is not None:
                tally = self.counter.account.sites[emission.site]
                tally.readouts, tally.function = group.readout.shape[0], role in INSTEAD
            self._remember(out, None)

        def population_hook(population: Population, args: Any, out: Tensor) -> None:
            found = self._resting(population, out, args[0], role, lambda told: check_population(population, told, out))
            self._remember(out, found)

        if isinstance(module, SpikingGroup):
            return group_hook
        return population_hook if isinstance(module, Population) else site_hook

    def _resting(
        self, module: Any, out: Tensor, values: Tensor, role: str, check: Callable[[Tensor | Held], bool]
    ) -> Emission | None:
        """The emission of a group or population: that of its site if that ran, else of what was told in its stead."""
        site = module.site
        if site.name in self.told:
            spikes, visible, _ = self.told.pop(site.name)
            emission = self._emission(site, spikes, visible, role, values)
            return emission if check(spikes) else self._refuse(site.name)
        found = self.inner.pop(site.name, None)
        if found is not None:
            found.elements = values.numel() // self.counter.timesteps
            self.counter.account.sites[site.name].elements = found.elements
        return found

    def _emission(self, site: Site, told: Tensor | Held, visible: Tensor | None, role: str, values: Tensor) -> Emission:
        stored = role in ("key", "value")
        counted = visible if not stored or site.clock.config.cache == "settled" else None
        elements = values.numel() // self.counter.timesteps
        if isinstance(told, Held):
            emission = emission_held(site, told, elements, counted)
        else:
            emission = emission_of(site, told, neurons_each(site, told), elements, counted)
        tally = self.counter.account.emitted(emission, site.kind)
        tally.replaces = site.replaces
        assert emission.by_channel is not None
        known = self.by_channel.get(site.name)
        self.by_channel[site.name] = emission.by_channel if known is None else known + emission.by_channel
        return emission

    def _refuse(self, site: str) -> None:
        note = f"what {site} handed on is not the sum of its spikes; its consumers are charged as analog"
        if note not in self.counter.account.notes:
            self.counter.account.notes.append(note)

    def _remember(self, rows: Tensor, emission: Emission | None) -> None:
        self.seen_bytes += rows.nbytes
        if self.seen_bytes > RETURN_AFTER:  # small tensors that stay have broken up the memory of large ones
            return_freed_memory()
            self.seen_bytes = 0
        timed = self.clock is not None and self.clock.folds
        self.counter.provenance.put(rows, Origin(timed, emission))


def silent(by_channel: Tensor) -> int:
    """Channels that never fired."""
    return int(torch.count_nonzero(by_channel == 0))
