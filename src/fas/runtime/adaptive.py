"""Adaptive T: each sequence stops by itself, and is read out at the timestep t* ≤ T at which it stopped.

Rows carry running values, so row t of the folded run is what a network says that was stopped after timestep t. The simulator
computes all T rows anyway (those behind t* repeat row t*, up to the rounding of a matrix product whose rows lie elsewhere);
what it reports is what hardware would take.

*Settled*: the sequence stops after the first t after which none of its neurons would fire again with its present input held
(`fas.neurons.settled`: each neuron can tell by itself). Nothing changes after that, so the readout is that of all T timesteps.
All neurons of all sites of the segment count, for all real tokens; behind an exact cache those of past tokens, too, because
their spikes are replayed. So a sequence stops with its last spike (or at 1), and knows it then. Groups of operators that never
lag have nothing left to do at any t.
A rate-coded network never settles: its rows are means, θ·N_t/t, which move at every t even while all its trains are regular.

*Confident*: the sequence stops at the first t at which its readout is confident (`fas.runtime.confident`), and may say
something else than after T.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fas import world
from fas.config import SpikingConfig
from fas.errors import ConfigError, FasError
from fas.given import model_from
from fas.models.family import Family
from fas.neurons import Clock, Site
from fas.runtime.confident import heads_over_time
from fas.runtime.control import clock_of
from fas.runtime.folding import over_time, said
from fas.runtime.spikes import real_tokens, which_count


@dataclass(eq=False)
class Run:
    """One call of a segment, until its sequences' stops are known."""

    module: nn.Module
    clock: Clock
    sequences: int
    """How many stop each by itself: the batch, or 1 where rows of several inputs are packed."""
    mask: Tensor | None
    """Real tokens ``[B, S]``; None: all."""
    cache: Any
    restless: Tensor
    """Whether a neuron of the sequence, or of its cached tokens, would fire again after timestep t: ``[T, sequences]``."""
    deferred: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Totals ``[T]`` and what is to be added to them of those timesteps that ran, ``[T, sequences]``."""
    output: Any = None
    """What the segment gave: T·B rows."""

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.restless)

    def by_sequence(self, values: Tensor) -> Tensor:
        """``values`` ``[T, B, …]`` as ``[T, sequences, …]`` (``[T, 1, …]`` where rows cannot be told apart)."""
        shared = values.shape[1] % self.sequences
        return values.flatten(1).view(len(values), 1 if shared else self.sequences, -1)

    def first_settled(self) -> Tensor:
        """The first timestep after which nothing would fire again, 1 … T: ``[sequences]``."""
        return (~self.restless).int().argmax(0) + 1

    def pick(self, stops: Tensor) -> Callable[[Tensor], Tensor]:
        """Reads rows ``[T·B, …]`` at ``stops`` ``[sequences]``: ``[B, …]``."""
        return partial(rows_at, clock=self.clock, stops=stops)

    def finish(self, stops: Tensor) -> None:
        """Count what was emitted until ``stops``; a cache remembers when its tokens settle."""
        ran = torch.arange(1, self.timesteps + 1, device=stops.device)[:, None] <= stops
        for total, counts in self.deferred:
            kept = ran if counts.shape[1] == ran.shape[1] else ran.any(1, keepdim=True)
            total += (counts * kept.to(counts.device)).sum(1).to(total.device)
        if (layer := _first_layer(self.cache)) is not None:
            layer._fas_restless = self.restless


def rows_at(rows: Tensor, clock: Clock, stops: Tensor) -> Tensor:
    """What rows ``[T·B, …]`` said at ``stops`` (1 … T, one for each of as many equal parts of the B rows): ``[B, …]``."""
    split, stops = over_time(rows, clock), stops.to(rows.device)
    each, shared = divmod(split.shape[1], len(stops))
    at = stops.max().expand(split.shape[1]) if shared else stops.repeat_interleave(each)
    found = torch.empty_like(split[0])
    for t in at.unique().tolist():
        chosen = at == t
        found[chosen] = said(split[:t, chosen], clock)
    return found


def _first_layer(cache: Any) -> Any:
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    return layers[0] if layers else None


class Adaptive:
    """What `adaptive` yields: when sequences stopped, by segment, one entry a sequence and call, in their order."""

    def __init__(self, model: nn.Module, settled: bool = True, confidence: float | None = None) -> None:
        self.clock, self.settled, self.confidence = clock_of(model), settled, confidence
        self.names = {module: name or type(module).__name__ for name, module in model.named_modules()}
        self.by_segment: dict[str, list[int]] = {}
        number = isinstance(confidence, int | float) and not isinstance(confidence, bool)
        if not isinstance(settled, bool):
            raise ConfigError(f"settled={settled!r} is not valid: it must be True or False")
        if not settled and confidence is None:
            raise ConfigError("nothing would stop a sequence: choose settled=True, a confidence, or both")
        if confidence is not None and not (number and math.isfinite(confidence) and confidence >= 0):
            raise ConfigError(f"confidence={confidence} is no probability; give one from 0 to 1, such as 0.9")
        if self.clock.stage != "snn":
            raise ConfigError("a QCFS model has no timesteps to stop at; convert it first (fas.convert)")
        self._check(self.clock.config)

    def _check(self, config: SpikingConfig) -> None:
        if not config.folds_time:
            raise ConfigError("the layerwise schedule has no timesteps to stop at; choose schedule='synchronous'")
        if self.settled and config.coding == "rate":
            raise ConfigError(
                "rate-coded values are running means, which move at every timestep, so no neuron can tell that it has settled; "
                "stop by a confidence alone (settled=False), or choose coding='sigma_delta'"
            )

    @property
    def running(self) -> list[Run]:
        """The calls of segments that have not ended in this thread, the inner ones last."""
        return self.clock.now.runs

    @property
    def trace(self) -> list[Run] | None:
        """Those of this thread that wait for the head to decide."""
        return self.clock.now.trace

    @trace.setter
    def trace(self, runs: list[Run] | None) -> None:
        self.clock.now.trace = runs

    @property
    def timesteps(self) -> list[int]:
        """t* of each sequence and call, of the segment that ran last (which the head reads)."""
        return next(reversed(self.by_segment.values()), [])

    @property
    def mean_timesteps(self) -> float:
        """The mean of t*; of several segments, which run one after another, the sum. Raises `FasError` if none ran."""
        if not self.by_segment:
            raise FasError("no sequence has run inside fas.adaptive yet; call the model there")
        return sum(sum(stops) / len(stops) for stops in self.by_segment.values())

    @property
    def histogram(self) -> list[int]:
        """How many of `timesteps` are 1, 2 … up to the largest."""
        return [self.timesteps.count(t) for t in range(1, max(self.timesteps, default=0) + 1)]

    def unite(self) -> None:
        """Make `by_segment` that of all processes (`fas.world`), one after the other."""
        everywhere, self.by_segment = world.gathered(self.by_segment), {}
        for stops in everywhere:
            for name, its in stops.items():
                self.by_segment.setdefault(name, []).extend(its)

    def begin(self, module: nn.Module, family: Family, given: dict[str, Any], batch: int, cache: Any) -> None:
        """A segment starts on ``batch`` sequences: ``given`` are its arguments before folding, ``cache`` what it will fill."""
        config = self.clock.config
        self._check(config)
        if self.confidence is not None and given.get("past_key_values") is not None:
            raise ConfigError(
                "a cache would replay timesteps that a confident token never ran; pass use_cache=False, or leave confidence out"
            )
        device = next(value.device for name in family.anchors if isinstance(value := given.get(name), Tensor))
        sequences = 1 if family.packed else batch
        restless = torch.zeros(config.timesteps, sequences, dtype=torch.bool, device=device)
        if config.cache == "exact" and cache is not None and cache.get_seq_length():
            past = getattr(_first_layer(cache), "_fas_restless", None)
            restless[:-1] = True if past is None else past[:-1]  # whoever filled it did not say
        self.running.append(Run(module, self.clock, sequences, real_tokens(family, given), cache, restless))

    def see(self, site: Site, rows: Tensor, spikes: Tensor, visible: Tensor | None) -> None:
        """A site of the running segment has encoded ``rows`` ``[T, B, …, C]`` into ``spikes`` ``[P·T, B, …, C]``."""
        if not self.settled or not self.running or bool(self.running[-1].restless[:-1].all()):
            return  # nothing that this site could add
        run = self.running[-1]
        moves = site.restless(rows, spikes)
        counted = which_count(moves[0], run.mask, visible)
        moves = run.by_sequence(moves if counted is None else moves & counted.bool()).any(-1)
        run.restless |= moves.to(run.restless.device)  # layers may lie on several devices

    def defer(self, total: Tensor, fired: Tensor) -> None:
        """Add to ``total`` ``[T]``, once it is known which timesteps ran, the sums of ``fired`` ``[T, B, …]``."""
        run = self.running[-1]
        run.deferred.append((total, run.by_sequence(fired).sum(-1, dtype=torch.int64)))

    def end(self, module: nn.Module, output: Any) -> Callable[[Tensor], Tensor]:
        """The segment has given ``output`` (T·B rows; None after an exception); returns how rows of it are picked."""
        if not self.running or self.running[-1].module is not module:
            return lambda rows: rows  # an exception before it began
        run = self.running.pop()
        stops = self.stops_of(run)
        if output is not None and self.trace is None:
            self.finish(run, stops)
        elif output is not None:
            run.output = copy.copy(output)
            self.trace.append(run)  # type: ignore[union-attr]
        return run.pick(stops)

    def stops_of(self, run: Run) -> Tensor:
        """Where the sequences of ``run`` stop if the head has no say."""
        return run.first_settled() if self.settled else torch.full_like(run.first_settled(), run.timesteps)

    def finish(self, run: Run, stops: Tensor) -> None:
        """``run`` ends at ``stops`` ``[sequences]``."""
        run.finish(stops)
        if not self.clock.now.unheard:
            self.by_segment.setdefault(self.names[run.module], []).extend(stops.tolist())


@contextmanager
def adaptive(model: nn.Module, *, settled: bool = True, confidence: float | None = None) -> Iterator[Adaptive]:
    """Inside, each sequence of every forward of ``model`` (and of ``generate``) stops by itself; yields the `Adaptive`.

    ``settled``: when nothing would change any more, which changes no output (sigma_delta only). ``confidence``: when the
    mean over the sequence's real tokens of the largest probability (of those whose logits are computed: the last one in
    ``generate``) reaches it, or for classification the largest probability; 0 stops at once, above 1 never. Given both,
    what comes first. It holds for the calls of all threads. Spikes are counted until a sequence stops, padding counts
    nowhere. Raises `ConfigError` where there is no time, for rate with ``settled``, and for ``confidence`` with a key/value
    cache, which would hold timesteps that never ran.
    """
    model_from(model, "fas.adaptive", nn.Module)
    clock = clock_of(model)

    def begin(undo: ExitStack) -> Adaptive:
        found = Adaptive(model, settled, confidence)
        if clock.early is not None:
            raise ConfigError("fas.adaptive is on already for this model; leave the outer context first")
        if confidence is not None:
            undo.enter_context(heads_over_time(model, found))
        clock.early = found
        undo.callback(setattr, clock, "early", None)
        return found

    with clock.turns.layered("fas.adaptive", begin) as found:
        yield found


def refuse_inside(clock: Clock, what: str) -> None:
    """Raise `ConfigError` where ``what`` would count timesteps that never ran."""
    if clock.early is not None:
        raise ConfigError(f"{what} runs all timesteps of every sequence; leave the fas.adaptive context first")
