"""The clock that all sites and segments of one model share: the time it is simulated in, and whether that runs.

What is set belongs to the model, and no call sees it change (`fas.turns`). What a call needs to remember until it ends belongs
to the thread that it runs in: threads may call one model at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fas.config import SpikingConfig
from fas.errors import FasError
from fas.turns import Turns, is_running

Stage = Literal["qcfs", "snn"]
Probe = Callable[[str, Tensor], None]


class Fired(NamedTuple):
    """What a method's own neurons answer."""

    value: Tensor
    """What goes on, of the shape of what came."""
    spikes: Tensor
    """``[T, B, …, C]``, integers; n at once count as n."""
    worth: Tensor | None = None
    """What a spike is worth, broadcast to ``spikes``: ``value`` is their sum over T (in time: each row its own spikes') and,
    if a layer answers at once, a constant of each token. The ledger checks it; None: it takes ``value`` for analog."""


class Now(threading.local):
    """What the running call of this thread remembers."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """As if no call ran."""
        self.calls: list[tuple[Any, FrameType]] = []
        """What runs, the model or a part of it, and in which frame; the outermost first."""
        self.depth = 0
        self.still = False
        self.visible: Tensor | None = None
        self.worth: Tensor | None = None
        self.memo: dict[str, list[Any]] = {}
        """By site: a tensor, its encoding, and how many consumers have yet to fetch it."""
        self.runs: list[Any] = []
        """Of `fas.runtime.adaptive`: calls of segments whose sequences stop by themselves."""
        self.trace: list[Any] | None = None
        """Those that wait for the head to decide."""
        self.handing: dict[Any, list[Any]] | None = None
        """By segment, what it hands on instead of running again (`fas.runtime.confident`)."""
        self.expected: tuple[int, SpikingConfig, Stage] | None = None
        """Of the backward pass that this thread was in last: its number, and the time that its forward ran in."""
        self.unheard = False
        """Whether what runs is a trial that counts nowhere (`fas.runtime.need`)."""


class Clock:
    """Shared, plain, picklable state of a prepared or converted model."""

    def __init__(self, config: SpikingConfig, stage: Stage = "qcfs", depth: int = 0) -> None:
        self.config = config
        self.stage: Stage = stage
        """``qcfs``: sites are QCFS units, no time; ``snn``: sites are neurons."""
        self.probe: Probe | None = None
        """Receives (site name, spikes ``[T, B, …, C]``) of every encoding while somebody records."""
        self.meter: Callable[[Any, Tensor, Tensor | None], None] | None = None
        """While QCFS units train under a spike budget: receives (site, values ``[B, …, C]``, which of them count)."""
        self.met: dict[str, None] | None = None
        """While somebody wants to know: the names of the sites that ran, in their order."""
        self.neuron: Callable[[Any, Tensor], Fired] | None = None
        """A method's own neuron in the place of the coding's (`fas.methods`), of (site, values ``[T, B, …, C]``, or
        ``[B, …, C]`` where time is not folded). It is not saved."""
        self.frozen: dict[Any, Any] | None = None
        """While no neuron should change (`fas.runtime.products`): what sites have worked out from their parameters."""
        self.rewritten = 0
        """How often somebody has written to neurons nevertheless: what was worked out from them is made anew."""
        self.early: Any = None
        """While sequences stop by themselves: the `fas.runtime.adaptive.Adaptive` that decides when."""
        self.shared: Any = None
        """What `fas.runtime.accelerated` has installed, for all who are inside."""
        self.now, self.turns = Now(), Turns()
        self.now.depth = depth

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("now", "turns", "shared")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.now, self.turns, self.shared = Now(), Turns(), None

    @property
    def folds(self) -> bool:
        """Whether segments carry T·B rows."""
        return self.stage == "snn" and self.config.folds_time

    @property
    def depth(self) -> int:
        """How many folded segments this thread runs now; a neuron outside of one is an error."""
        return self.now.depth

    @depth.setter
    def depth(self, value: int) -> None:
        self.now.depth = value

    @property
    def still(self) -> bool:
        """Whether no neuron of the running segment has been reached yet: its rows are the same at all T."""
        return self.now.still

    @property
    def visible(self) -> Tensor | None:
        """For the probe: which neurons of the encoding ``[B, …, C]`` (broadcast) count; None: all. Masked ones never fire,
        and what a cache keeps has fired before."""
        return self.now.visible

    @property
    def worth(self) -> Tensor | None:
        """For the probe: what the own neuron says its spikes are worth."""
        return self.now.worth

    def expect(self) -> Callable[[Tensor], None]:
        """A hook for the gradient of what has run now: a checkpoint behind it computes it again in the same time, or not."""
        config, stage = self.config, self.stage

        def hook(grad: Tensor) -> None:
            self.now.expected = torch._C._current_graph_task_id(), config, stage

        return hook

    def check_recomputed(self) -> None:
        """Raise `FasError` where this thread is inside a backward pass whose forward ran in another time."""
        assert self.now.expected is not None
        number, config, stage = self.now.expected
        if number == torch._C._current_graph_task_id() != -1 and (stage, config) != (self.stage, self.config):
            raise FasError(
                "the time of the model was changed between a forward and its backward pass, which computes checkpointed layers "
                "again; change it before the forward or after the backward pass"
            )

    def enter(self, of: Any, frame: FrameType, alone: bool = False) -> None:
        """``of``, the model or a part of it, starts to run in this thread, in ``frame``; `FasError` as `Turns.begin`."""
        now = self.now
        again = any(one is of for one, _ in now.calls)  # within itself, or after an interrupt
        if not now.calls or (again and not self.is_called):
            self.turns.begin(alone or self.neuron is not None)  # which may remember what it likes
        now.calls.append((of, frame))

    def leave(self, of: Any) -> None:
        """``of`` has run, or failed; without an `enter` nothing happens."""
        now = self.now
        if now.calls and now.calls[-1][0] is of:
            now.calls.pop()
            if not now.calls:
                now.memo.clear()
                self.turns.end()

    @property
    def is_called(self) -> bool:
        """Whether this thread is inside a call; one that an interrupt has ended without a word is forgotten."""
        now = self.now
        if now.calls and not is_running(now.calls[0][1]):
            now.forget()
            self.turns.end()
        return bool(now.calls)

    @contextmanager
    def changing(self, what: str, waits: bool = False) -> Iterator[None]:
        """Inside, only this thread calls and changes the model (`Turns.changing`)."""
        _ = self.is_called  # forgets what an interrupt has ended
        with self.turns.changing(what, waits):
            yield
