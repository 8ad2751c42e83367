"""A spike budget for Stage 1: the expected spikes of all sites together are held at so many a neuron."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fas import world
from fas.neurons import Site
from fas.neurons.expected import expected_spikes, spikes_of_codes
from fas.runtime.control import clock_of
from fas.runtime.spikes import which_count

RAMP = 0.5
"""Share of the steps in which the budget tightens, from what the model needs to what it is allowed."""


class SpikeBudget:
    """Measures the expected spikes a neuron of every forward, and charges what exceeds the budget.

    Sites whose λ is trained are counted (operator groups and populations are not: their thresholds are the geometry of
    their function). All neurons of real tokens count alike, as in ``spikes_per_neuron`` of the results.
    """

    def __init__(self, model: nn.Module, spikes_per_neuron: float, steps: int, weight: float = 1.0) -> None:
        self.clock, self.allowed, self.weight = clock_of(model), spikes_per_neuron, weight
        self.steps, self.step = max(1, round(RAMP * steps)), 0
        self.start: float | None = None
        self.spikes: Tensor | None = None
        self.neurons = 0.0
        self.mask: Tensor | None = None

    def _meter(self, site: Site, x: Tensor, visible: Tensor | None) -> None:
        if not site.calibrates:
            return
        counts = spikes_of_codes(self.clock.config, site.levels)
        spikes = expected_spikes(x, site.scale.to(x.dtype), site.signed, counts)
        counted = which_count(spikes, self.mask, visible)
        if counted is None:
            self.neurons += spikes.numel()
        else:
            spikes = spikes * counted
            self.neurons += float(counted.expand(spikes.shape).sum())
        total = spikes.sum()
        self.spikes = total if self.spikes is None else self.spikes + total

    @contextmanager
    def metering(self, mask: Tensor | None = None) -> Iterator[None]:
        """Count one forward of the model, of its real tokens (``mask`` ``[B, S]``; None: all)."""
        self.spikes, self.neurons, self.mask = None, 0.0, mask
        with self.clock.changing("a step under a spike budget"):
            self.clock.meter = self._meter
            try:
                yield
            finally:
                self.clock.meter = None

    def _everywhere(self, spikes: Tensor) -> Tensor:
        """Spikes a neuron of all processes together. The gradient is that of this one's, so many times that the processes'
        mean, which the Trainer takes, is that of the whole."""
        if world.size() == 1:
            return spikes / self.neurons
        here = torch.stack([spikes.detach().double(), torch.tensor(self.neurons, device=spikes.device).double()])
        total, neurons = world.summed(here).tolist()
        part = spikes * (world.size() / neurons)
        return part + (total / neurons - part.detach())

    def penalty(self) -> Tensor:
        """``weight``·max(0, m/b − 1) of the forward that was metered: m spikes a neuron, b the budget of this step."""
        assert self.spikes is not None
        mean = self._everywhere(self.spikes)
        if self.start is None:
            self.start = float(mean.detach())
        share = min(1.0, self.step / self.steps)
        allowed = max(self.allowed, self.start + share * (self.allowed - self.start))
        self.step += 1
        return self.weight * torch.relu(mean / allowed - 1)
