"""Counts spikes while a model runs: non-zero spikes over all T, per neuron = site channel × real (unmasked) token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fas import world
from fas.models.family import Family
from fas.neurons import Clock, Held
from fas.runtime.control import clock_of
from fas.runtime.folding import FoldHook


def by_timestep(fired: Tensor) -> Tensor:
    """The sum of ``fired`` ``[T, …]`` (truth values or small numbers) in each timestep ``[T]``."""
    if fired.dtype == torch.bool:
        return torch.tensor([int(torch.count_nonzero(step)) for step in fired])
    return torch.tensor([int(step.sum(dtype=torch.int64)) for step in fired])


@dataclass
class SiteCount:
    """Non-zero spikes of one site by timestep ``[T]``, and how many neurons could have fired."""

    by_timestep: Tensor
    neurons: int = 0

    @property
    def per_neuron(self) -> float:
        """Non-zero spikes over all T, per neuron."""
        return float(self.by_timestep.sum()) / max(1, self.neurons)


def which_count(neurons: Tensor, mask: Tensor | None, visible: Tensor | None) -> Tensor | None:
    """Which of ``neurons`` ``[B, S, …, C]`` belong to real tokens of ``mask`` ``[B, S]`` and are ``visible``; None: all."""
    counted = visible
    if mask is not None:
        real = mask.reshape(-1, mask.shape[-1]).to(neurons.device).bool()
        if neurons.ndim == 2 and len(neurons) == real.numel():  # some families flatten the tokens: [B·S, C]
            real = real.reshape(-1, 1)
            counted = real if counted is None else counted & real
        # a pooler sees one token of each sequence: [B, C]
        elif neurons.ndim > 2 and neurons.shape[:2] == real.shape:
            real = real.view(*real.shape, *[1] * (neurons.ndim - 2))
            counted = real if counted is None else counted & real
    return counted


def real_tokens(family: Family, arguments: dict[str, Any]) -> Tensor | None:
    """Which tokens ``[B, S]`` of a segment's ``arguments`` (by name) are no padding; None: all, or no mask says it."""
    mask = arguments.get("attention_mask")
    tokens = next(arguments[name] for name in family.anchors if isinstance(arguments.get(name), Tensor))
    if isinstance(mask, Tensor) and mask.ndim == 2 and tokens.ndim > 1:
        return mask[:, -tokens.shape[1] :]  # cached tokens have no new spikes
    return None


@dataclass
class SpikeCount:
    """Counts of all covered sites of the forwards that ran inside `counting`."""

    clock: Clock
    sites: dict[str, SiteCount] = field(default_factory=dict)
    mask: Tensor | None = None
    """Real tokens ``[B, S]`` of the running segment; None counts every token."""

    def __call__(self, name: str, spikes: Tensor) -> None:
        self._add(name, spikes != 0, 1)

    def held(self, name: str, held: Held) -> None:
        """As the spikes that ``held`` stands for."""
        self._add(name, held.steps, held.each)

    def _add(self, name: str, fired: Tensor, each: int) -> None:
        """Spikes ``[T, B, …, C]`` (numbers or truth values), each of ``each`` neurons."""
        counted = which_count(fired[0], self.mask, self.clock.visible)
        neurons = fired[0].numel()
        if counted is not None:
            fired = fired * counted
            neurons = int(torch.count_nonzero(counted.expand_as(fired[0])))
        count = self.sites.setdefault(name, SiteCount(torch.zeros(len(fired), dtype=torch.int64)))
        early = self.clock.early
        if early is None or not early.running:
            count.by_timestep += by_timestep(fired)
        else:  # when a sequence stopped is known only later
            early.defer(count.by_timestep, fired)
        count.neurons += neurons * each

    def unite(self) -> None:
        """Make these the counts of all processes (`fas.world`) together."""
        everywhere = world.gathered({name: (c.by_timestep.tolist(), c.neurons) for name, c in self.sites.items()})
        self.sites.clear()
        for counts in everywhere:
            for name, (spikes, neurons) in counts.items():
                count = self.sites.setdefault(name, SiteCount(torch.zeros(len(spikes), dtype=torch.int64)))
                count.by_timestep += torch.tensor(spikes, dtype=torch.int64)
                count.neurons += neurons

    @property
    def per_neuron(self) -> float:
        """All covered sites pooled."""
        spikes = sum(float(count.by_timestep.sum()) for count in self.sites.values())
        return spikes / max(1, sum(count.neurons for count in self.sites.values()))


@contextmanager
def counting(model: nn.Module) -> Iterator[SpikeCount]:
    """Count the spikes of every forward of ``model`` inside the context, in which only this thread may call it."""
    clock = clock_of(model)
    with clock.changing("a count of spikes"):
        yield from _counting(model, clock)


def _counting(model: nn.Module, clock: Clock) -> Iterator[SpikeCount]:
    count = SpikeCount(clock)
    before, clock.probe = clock.probe, count
    handles = []
    for module in model.modules():
        folds = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, FoldHook)]
        handles += [
            module.register_forward_pre_hook(_SeeMask(count, fold), with_kwargs=True, prepend=True) for fold in folds
        ]
    try:
        yield count
    finally:
        clock.probe = before
        for handle in handles:
            handle.remove()


class _SeeMask:
    """Pre-hook of a segment, in front of its fold: source, target and image have masks of their own."""

    def __init__(self, count: SpikeCount, fold: FoldHook) -> None:
        self.count, self.fold = count, fold

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named, _ = self.fold.rows(module, args, kwargs)
        self.count.mask = real_tokens(self.fold.family, named)
