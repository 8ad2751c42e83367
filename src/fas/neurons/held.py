"""What neurons of one level that never lag hold: a number in place of N trains, from which every count of spikes follows.

N neurons stand in a row and those below the number h_t are full, so neuron i fires at t if i lies between h_{t−1} and h_t,
and Σ_i |s_{t,i}| = |h_t − h_{t−1}| (h_0 = 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


def dtype_for(neurons: int) -> torch.dtype:
    """The smallest integers that hold a swing through ``neurons`` of both signs."""
    return torch.int8 if 2 * neurons <= torch.iinfo(torch.int8).max else torch.int32


@dataclass(frozen=True, eq=False)
class Held:
    """``numbers`` ``[T, B, …, C]`` (of `dtype_for`): of each channel's ``neurons`` so many are full, of those that stand for
    the other sign so many as it is below 0."""

    numbers: Tensor
    neurons: int
    signed: bool = False

    def __post_init__(self) -> None:
        assert self.numbers.dtype == dtype_for(self.neurons), "a swing through all neurons of both signs must fit"

    @property
    def each(self) -> int:
        """Neurons of a channel, of both signs."""
        return 2 * self.neurons if self.signed else self.neurons

    @cached_property
    def steps(self) -> Tensor:
        """Spikes of each channel's neurons together in each timestep ``[T, B, …, C]`` (small integers)."""
        return torch.diff(self.numbers, dim=0, prepend=torch.zeros_like(self.numbers[:1])).abs_()

    def spikes(self) -> Tensor:
        """The trains: ternary ``[T, B, …, N]`` (int8), N = signs × neurons × channels in this order."""
        full = self._full(self.numbers.unsqueeze(-2)).flatten(-2).to(torch.int8)
        return torch.diff(full, dim=0, prepend=torch.zeros_like(full[:1]))

    def by_neuron(self, counted: Tensor | None = None) -> Tensor:
        """Spikes of each neuron ``[N]`` in the order of `spikes`; ``counted`` ``[B, …, 1]`` leaves others out."""
        low = -self.neurons if self.signed else 0
        possible, channels = self.neurons - low + 1, self.numbers.shape[-1]
        found = torch.zeros(channels * possible**2, dtype=torch.int64, device=self.numbers.device)
        dtype = torch.int16 if len(found) <= torch.iinfo(torch.int16).max else torch.int32
        before = torch.full(self.numbers.shape[1:], -low, dtype=dtype, device=self.numbers.device)
        channel = torch.arange(channels, dtype=dtype, device=self.numbers.device) * possible**2
        for numbers in self.numbers:
            # what does not count stays at 0
            now = (numbers if counted is None else numbers * counted).to(dtype) - low
            found += torch.bincount(before.mul_(possible).add_(now).add_(channel).flatten(), minlength=len(found))
            before = now
        full = self._full(torch.arange(low, self.neurons + 1, device=self.numbers.device).view(-1, 1, 1)).squeeze(-1)
        fires = (full.unsqueeze(0) != full.unsqueeze(1)).flatten(0, 1)  # [moves, N]
        return (found.view(channels, -1).double() @ fires.double()).T.flatten().to(torch.int64)

    def _full(self, numbers: Tensor) -> Tensor:
        """Which of a channel's neurons are full: ``numbers`` ``[…, 1, C]`` to ``[…, N, C]``."""
        each = torch.arange(self.neurons, device=numbers.device, dtype=numbers.dtype).unsqueeze(-1)
        signs = (numbers, -numbers) if self.signed else (numbers,)
        return torch.cat([held > each for held in signs], -2)


def tell(probe: Any, name: str, held: Held) -> None:
    """Hand ``held`` to ``probe``: as it is to one that has a method ``held``, else its spikes."""
    take = getattr(probe, "held", None)
    if take is None:
        probe(name, held.spikes())
    else:
        take(name, held)
