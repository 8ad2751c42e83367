"""What a call of a model takes, measured on one of its sequences.

Its tensors are followed (`fas.runtime.alive`), in the PyTorch code of the neurons, which holds more than the compiled one. What
a batch takes grows with its sequences, at most; what a sequence takes, with the square of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from transformers.utils import ModelOutput

from fas.neurons import Clock
from fas.runtime import mean_loss, rows
from fas.runtime.alive import traced
from fas.runtime.spikes import SpikeCount


class Need(NamedTuple):
    """What one sequence takes, in bytes: at the peak of its forward, and in what the model gives."""

    peak: int
    given: int
    loss: str | None = None
    """What its mean loss counts (`fas.runtime.mean_loss`)."""
    compares: bool = False
    """Whether it compares each sequence with all others."""


class Needs:
    """What one sequence of each kind of call takes, as far as it is known."""

    def __init__(self, clock: Clock | None) -> None:
        self.clock = clock
        self.known: dict[Any, list[tuple[tuple[int, ...], Need]]] = {}

    def _key(self, named: dict[str, Any], sequences: int) -> tuple[Any, tuple[int, ...]]:
        """What a call is like but for the sizes of its tensors, and those sizes, of one sequence."""
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        kinds = [(name, value.dtype, value.ndim) for name, value in tensors.items()]
        others = [(name, str(value)) for name, value in named.items() if isinstance(value, bool | int | str)]
        clock = self.clock
        time = (
            None
            if clock is None
            else (clock.config, clock.stage, *(entry is None for entry in (clock.probe, clock.early, clock.frozen)))
        )
        return (*kinds, *others, time), tuple(-(-value.numel() // sequences) for value in tensors.values())

    def bound(self, named: dict[str, Any], sequences: int) -> Need | None:
        """At most what one sequence takes, from others: with n times as many tokens n² as much."""
        key, sizes = self._key(named, sequences)
        found = []
        for known, need in self.known.get(key, ()):
            more = max(1, *(size / max(1, before) for size, before in zip(sizes, known, strict=True))) ** 2
            found.append(need._replace(peak=int(need.peak * more)))
        return min(found, key=lambda need: need.peak, default=None)

    def of(
        self,
        forward: Callable[..., Any],
        named: dict[str, Any],
        axes: dict[str, int],
        sequences: int,
        labels: Tensor | None,
    ) -> Need:
        """What one sequence takes in ``forward``: known, or measured on the one that has most labels."""
        key, sizes = self._key(named, sequences)
        entries = self.known.setdefault(key, [])
        if (known := next((need for before, need in entries if before == sizes), None)) is not None:
            return known
        held: list[Any] = []
        one = rows.part(named, axes, sequences, 0 if labels is None else mean_loss.telling(labels), 1)
        with _unheard(self.clock):
            cost = traced(lambda: held.append(forward(**one)))
        names = held[0].keys() if isinstance(held[0], ModelOutput) else ()
        compares = any(name.startswith("logits_per_") for name in names)
        loss = None if labels is None else mean_loss.convention(one["labels"], held[0])
        entries.append((sizes, Need(cost.peak, rows.bytes_of(held[0]), loss, compares)))
        return entries[-1][1]


@contextmanager
def _unheard(clock: Clock | None) -> Iterator[None]:
    """Inside, what runs is counted nowhere, and takes as much memory as if it were."""
    if clock is None:
        yield
        return
    probe, met, before = clock.probe, clock.met, clock.now.unheard
    clock.now.unheard, clock.met = True, None
    if probe is not None:
        clock.probe = SpikeCount(clock) if isinstance(probe, SpikeCount) else lambda name, spikes: None
    try:
        yield
    finally:
        clock.probe, clock.met, clock.now.unheard = probe, met, before
