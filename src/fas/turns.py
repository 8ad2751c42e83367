"""Whose turn it is: many threads may call a model at once, or one of them may change it; never both.

Who changes it waits until the calls of other threads have ended, and calls that begin meanwhile wait for the change. Who waited
when a change ended goes before the next one, so that neither kind of work starves the other. Nobody waits forever: after
`PATIENCE` there is one sentence.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TypeVar

from fas.errors import FasError

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that a thread waits for its turn."""
LOOK = 0.2
"""Seconds after which it looks whether the thread that it waits for is alive."""


def is_running(frame: FrameType) -> bool:
    """Whether ``frame`` is on the stack of this thread; to walk another thread's is not safe in CPython 3.11."""
    found: FrameType | None = sys._getframe()
    while found is not None and found is not frame:
        found = found.f_back
    return found is not None


class Turns:
    """The calls that run now, by thread, and who changes the model."""

    def __init__(self) -> None:
        self.calls: dict[int, bool] = {}
        """The threads that call the model, and whether no other one may meanwhile."""
        self.owner: int | None = None
        self.what = ""
        """What the owner does, in words."""
        self.held = 0
        self.changers = 0
        """Threads that wait for a change."""
        self.callers: set[int] = set()
        """Threads that wait for a call."""
        self.admitted: set[int] = set()
        """Those of them that go before the next change."""
        self.layers: list[tuple[int, object]] = []
        """The thread of each context that is on; what the last one changed is undone first."""
        self.free = threading.Condition()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()  # a copy of a model has calls of its own

    def begin(self, alone: bool = False) -> None:
        """This thread starts a call; ``alone``: not beside others.

        Raises `FasError` where another thread has changed the model for longer than `PATIENCE`.
        """
        me = threading.get_ident()
        threading.current_thread()  # makes one that Python did not start known to `threading.enumerate`
        if alone:
            self._take("a call of a model that runs one at a time", me, lambda: None)
        with self.free:
            if not self._open(me):
                self.callers.add(me)
                try:
                    self._wait(lambda: self._open(me), self._late_for_call)
                finally:
                    self.callers.discard(me)
                    self.admitted.discard(me)
                    self.free.notify_all()
            self.calls[me] = alone

    def end(self) -> None:
        """This thread's call has ended."""
        with self.free:
            if self.calls.pop(threading.get_ident(), False):
                self._give_back()
            if self.changers:
                self.free.notify_all()

    @contextmanager
    def layered(self, what: str, begin: Callable[[ExitStack], T]) -> Iterator[T]:
        """A context ``what`` that holds for the calls of all threads: ``begin`` changes the model, its stack undoes that in the
        end, when no call runs, and after the contexts that other threads have begun inside."""
        key = object()
        with self.changing(what), ExitStack() as stack:
            found = begin(stack)
            self.layers.append((threading.get_ident(), key))
            undo = stack.pop_all()
        try:
            yield found
        finally:
            with self.changing(f"leaving {what}", waits=True, last=key), undo:
                self.layers = [layer for layer in self.layers if layer[1] is not key]

    @contextmanager
    def changing(self, what: str, waits: bool = False, last: object = None) -> Iterator[None]:
        """Inside, no other thread calls the model or changes it; ``what`` does so, in words.

        Raises `FasError` where others have not ended within `PATIENCE` (``waits``: however long it takes). ``last``: the layer
        inside which no other thread may have one.
        """
        self._take(what, threading.get_ident(), lambda: None if waits else self._late_for_change(what), last)
        try:
            yield
        finally:
            with self.free:
                self._give_back()

    def _take(self, what: str, me: int, late: Callable[[], str | None], last: object = None) -> None:
        with self.free:
            if self.owner != me:
                while not self._is_quiet(me, last):
                    self._wait(
                        lambda: self._is_last(me, last), late
                    )  # calls go on until other threads leave their layers
                    self.changers += 1
                    try:
                        self._wait(lambda: self._is_quiet(me, last) or not self._is_last(me, last), late)
                    finally:
                        self.changers -= 1
                        self.free.notify_all()
                self.owner, self.what = me, what
            self.held += 1

    def _give_back(self) -> None:
        self.held -= 1
        if self.held == 0:
            self.owner, self.admitted = None, set(self.callers)
            self.free.notify_all()

    def _open(self, me: int) -> bool:
        """Whether a call may begin."""
        if self.owner is not None:
            return self.owner == me
        return not self.changers or me in self.admitted

    def _is_quiet(self, me: int, last: object) -> bool:
        """Whether a change may begin."""
        free = self.owner is None and not self.admitted and self._is_last(me, last)
        return free and all(thread == me for thread in self.calls)

    def _is_last(self, me: int, last: object) -> bool:
        """Whether no other thread has a layer inside the layer ``last``."""
        for thread, layer in reversed(self.layers if last is not None else ()):
            if layer is last:
                break
            if thread != me:
                return False
        return True

    def _forget_the_dead(self, me: int) -> None:
        """Forget what threads were doing that have ended without a word."""
        alive = {thread.ident for thread in threading.enumerate()} | {me}
        self.calls = {thread: alone for thread, alone in self.calls.items() if thread in alive}
        self.layers = [layer for layer in self.layers if layer[0] in alive]
        if self.owner is not None and self.owner not in alive:
            self.held = 1
            self._give_back()

    def _wait(self, ready: Callable[[], bool], late: Callable[[], str | None]) -> None:
        me, end = threading.get_ident(), time.monotonic() + PATIENCE
        while not ready():
            self._forget_the_dead(me)
            if ready():
                return
            if time.monotonic() >= end and (text := late()) is not None:
                raise FasError(text)
            self.free.wait(LOOK)

    def _late_for_call(self) -> str | None:
        if self.owner is None or self.calls.get(self.owner, False):
            return None  # others are before it, each of whom gets ready or gives up
        return (
            f"the model is changed by another thread ({self.what}), for which this call has waited {PATIENCE:.0f} s; call it "
            "when that is done, or give each thread a model of its own (copy.deepcopy)"
        )

    def _late_for_change(self, what: str) -> str:
        others = len(self.calls.keys() - {threading.get_ident()})
        busy = (
            f"another thread changes it ({self.what})"
            if self.owner is not None
            else f"other threads call it ({others})"
        )
        return (
            f"{what} would change the model while {busy}, for which it has waited {PATIENCE:.0f} s; do it when that is "
            "done, or give each thread a model of its own (copy.deepcopy)"
        )
