"""Counts spikes while a model runs: non-zero spikes over all T, per neuron = site channel × real (unmasked) token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fas.neurons import Clock
from fas.runtime.control import clock_of


@dataclass
class SiteCount:
    """Non-zero spikes of one site by timestep ``[T]``, and how many neurons could have fired."""

    by_timestep: Tensor
    neurons: int = 0

    @property
    def per_neuron(self) -> float:
        """Non-zero spikes over all T, per neuron."""
        return float(self.by_timestep.sum()) / max(1, self.neurons)


@dataclass
class SpikeCount:
    """Counts of all covered sites of the forwards that ran inside `counting`."""

    clock: Clock
    sites: dict[str, SiteCount] = field(default_factory=dict)
    mask: Tensor | None = None
    """Real tokens ``[B, S]`` of the forward to come; None counts every token."""

    def __call__(self, name: str, spikes: Tensor) -> None:
        fired = spikes != 0
        counted = self._counted(fired[0])
        neurons = fired[0].numel()
        if counted is not None:
            fired = fired & counted
            neurons = int(counted.expand_as(fired[0]).sum())
        count = self.sites.setdefault(name, SiteCount(torch.zeros(len(spikes), dtype=torch.int64)))
        count.by_timestep += fired.flatten(1).sum(1).cpu()
        count.neurons += neurons

    def _counted(self, neurons: Tensor) -> Tensor | None:
        """Which of ``neurons`` ``[B, S, …, C]`` belong to real tokens and are visible; None: all."""
        counted = self.clock.visible
        if self.mask is not None:
            real = self.mask.reshape(-1, self.mask.shape[-1]).to(neurons.device).bool()
            # a pooler sees one token of each sequence: [B, C]
            if neurons.ndim > 2 and neurons.shape[:2] == real.shape:
                real = real.view(*real.shape, *[1] * (neurons.ndim - 2))
                counted = real if counted is None else counted & real
        return counted

    @property
    def per_neuron(self) -> float:
        """All covered sites pooled."""
        spikes = sum(float(count.by_timestep.sum()) for count in self.sites.values())
        return spikes / max(1, sum(count.neurons for count in self.sites.values()))


@contextmanager
def counting(model: nn.Module) -> Iterator[SpikeCount]:
    """Count the spikes of every forward of ``model`` inside the context."""
    clock = clock_of(model)
    count = SpikeCount(clock)

    def see_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids", args[0] if args else None)
        count.mask = None
        if isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.ndim == ids.ndim:
            count.mask = mask[..., -ids.shape[-1] :]  # cached tokens have no new spikes

    before, clock.probe = clock.probe, count
    handle = model.register_forward_pre_hook(see_mask, with_kwargs=True)
    try:
        yield count
    finally:
        clock.probe = before
        handle.remove()
