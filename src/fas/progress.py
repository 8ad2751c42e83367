"""What long work says while it runs. The command line shows it (rich on a terminal, plain lines otherwise); Python code
that passes nothing gets `Silent`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """A task at a time: ``start``, any number of ``advance``, ``done``; ``note`` at any moment."""

    def start(self, title: str, total: int | None = None) -> None:
        """A new task of ``total`` equal parts (None: unknown) begins."""

    def advance(self, parts: int = 1, note: str = "") -> None:
        """``parts`` are finished; ``note`` is a short figure to show beside the bar, e.g. ``loss 1.234``."""

    def done(self, summary: str = "") -> None:
        """The task is finished; ``summary`` is one line that stays."""

    def note(self, text: str) -> None:
        """One line that stays, e.g. a decision and its reason."""


class Silent:
    """Says nothing."""

    def start(self, title: str, total: int | None = None) -> None:
        pass

    def advance(self, parts: int = 1, note: str = "") -> None:
        pass

    def done(self, summary: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass


def counted(items: Sequence[Item], progress: Progress, title: str, summary: str = "") -> Iterator[Item]:
    """``items`` one after the other, as a task of ``title`` with a part for each.

    >>> list(counted("abc", Silent(), "letters"))
    ['a', 'b', 'c']
    """
    progress.start(title, len(items))
    for item in items:
        yield item
        progress.advance()
    progress.done(summary)
