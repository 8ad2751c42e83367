"""What long work says while it runs. The command line shows it (rich on a terminal, plain lines otherwise); Python code
gets `Bars` where it says ``progress=True``, and else `Silent`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from fas.errors import ConfigError

Item = TypeVar("Item")
_METHODS = ("start", "advance", "done", "note")


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


class Bars:
    """A bar for each task, as transformers shows them: on a terminal, or in a notebook."""

    bar: Any = None

    def start(self, title: str, total: int | None = None) -> None:
        from tqdm.auto import tqdm

        self.close()
        self.bar = tqdm(total=total, desc=title, smoothing=0.1, position=0)

    def advance(self, parts: int = 1, note: str = "") -> None:
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(parts)

    def done(self, summary: str = "") -> None:
        self.close()
        if summary:
            self.note(summary)

    def note(self, text: str) -> None:
        from tqdm.auto import tqdm

        tqdm.write(text)

    def close(self) -> None:
        """The bar stays as it is."""
        if self.bar is not None:
            self.bar.close()
        self.bar = None


def progress_from(progress: Any) -> Progress:
    """``progress`` itself; a bar on the terminal or in the notebook for True, and nothing for None or False.

    Raises `ConfigError` for anything else.
    """
    if progress is None or progress is False:
        return Silent()
    if progress is True:
        return Bars()
    if isinstance(progress, type) or not all(callable(getattr(progress, name, None)) for name in _METHODS):
        raise ConfigError(
            f"progress={progress!r} is not valid: give True for a bar, or an object with the methods of fas.progress.Progress"
        )
    return progress


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
