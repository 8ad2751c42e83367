"""Counts spikes while a model runs: non-zero spikes over all T, per neuron = site channel × real (unmasked) token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

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

    sites: dict[str, SiteCount] = field(default_factory=dict)
    mask: Tensor | None = None
    """Real tokens ``[B, S]`` of the forward to come; None counts every token."""

    def __call__(self, name: str, spikes: Tensor) -> None:
        timesteps, width = spikes.shape[0], spikes.shape[-1]
        fired = (spikes != 0).reshape(timesteps, -1, width).sum(-1)  # [T, B·S]
        tokens = fired.shape[1]
        if self.mask is not None and self.mask.numel() == tokens:  # a pooler sees one token of each sequence
            real = self.mask.reshape(-1).to(fired.device).bool()
            fired, tokens = fired[:, real], int(real.sum())
        count = self.sites.setdefault(name, SiteCount(torch.zeros(timesteps, dtype=torch.int64)))
        count.by_timestep += fired.sum(1).cpu()
        count.neurons += tokens * width

    @property
    def per_neuron(self) -> float:
        """All covered sites pooled."""
        spikes = sum(float(count.by_timestep.sum()) for count in self.sites.values())
        return spikes / max(1, sum(count.neurons for count in self.sites.values()))


@contextmanager
def counting(model: nn.Module) -> Iterator[SpikeCount]:
    """Count the spikes of every forward of ``model`` inside the context."""
    clock = clock_of(model)
    count = SpikeCount()

    def see_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
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
