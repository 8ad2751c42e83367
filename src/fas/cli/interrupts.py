"""Ctrl-C and SIGTERM: the first one ends a command in order, the second one at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def in_order() -> Iterator[list[int]]:
    """While the block runs, the first signal raises `KeyboardInterrupt` in it, so that files are closed and half folders
    removed; another one ends the process. Yields the signals that came. Outside of the main thread nothing is changed."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def raised(number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        came.append(number)
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):  # nohup, or a handler that is not Python's
            signal.signal(number, raised)
    try:
        yield came
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
