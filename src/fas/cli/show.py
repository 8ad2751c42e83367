"""What a command shows while it works: a live bar on a terminal, few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from fas.progress import Progress, Silent

SECONDS_BETWEEN_LINES = 20.0
SHORTEST_PAUSE = 2.0


class Lines:
    """Plain lines: one when a task starts, at most one per tenth of it or 20 seconds, one when it is done."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.title: str | None = None

    def start(self, title: str, total: int | None = None) -> None:
        self._finish_open_task()
        self.title, self.total, self.parts = title, total, 0
        self.started = self.spoken = time.monotonic()
        self.said = 0.0
        self.note(title)

    def advance(self, parts: int = 1, note: str = "") -> None:
        self.parts += parts
        pause = time.monotonic() - self.spoken
        share = self.parts / self.total if self.total else 0.0
        tenth = share - self.said >= 0.1 and share < 1 and pause >= SHORTEST_PAUSE
        if tenth or pause >= SECONDS_BETWEEN_LINES:
            self.spoken, self.said = time.monotonic(), share
            position = f"{share:4.0%}{self._left(share)}" if self.total else str(self.parts)
            self.note(f"  {position} {note}".rstrip())

    def done(self, summary: str = "") -> None:
        if self.title is not None:
            self.note(f"  {summary or 'done'} ({duration(time.monotonic() - self.started)})")
        self.title = None

    def note(self, text: str) -> None:
        print(text, file=self.file, flush=True)

    def close(self) -> None:
        """Leave nothing behind."""

    def _left(self, share: float) -> str:
        """The time that is left if it goes on as before."""
        spent = time.monotonic() - self.started
        return f" ({duration(spent * (1 - share) / share)} left)" if 0 < share < 1 else ""

    def _finish_open_task(self) -> None:
        if self.title is not None:
            self.done()


class Bar:
    """A live bar with the time that is left; finished tasks and notes stay above it as lines."""

    def __init__(self, file: TextIO) -> None:
        from rich.console import Console

        self.console = Console(file=file, highlight=False)
        self.live: Any = None

    def start(self, title: str, total: int | None = None) -> None:
        from rich import progress

        if self.live is not None:
            self.done()
        self.title, self.started = title, time.monotonic()
        self.live = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            progress.TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=self.console,
            transient=True,
        )
        self.task = self.live.add_task(title, total=total, note="")
        self.live.start()

    def advance(self, parts: int = 1, note: str = "") -> None:
        if self.live is not None:
            self.live.update(self.task, advance=parts, **({"note": note} if note else {}))

    def done(self, summary: str = "") -> None:
        if self.live is not None:
            self.close()
            took = duration(time.monotonic() - self.started)
            self.console.print(f"✓ {self.title}{': ' if summary else ''}{summary} ({took})", markup=False)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)

    def close(self) -> None:
        """Take the bar away, e.g. before an error is printed."""
        if self.live is not None:
            self.live.stop()
        self.live = None


def progress_on(file: TextIO | None = None, quiet: bool = False) -> Progress:
    """The implementation that fits ``file`` (standard error); `Silent` if ``quiet``."""
    file = file or sys.stderr
    if quiet:
        return Silent()
    return Bar(file) if file.isatty() else Lines(file)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(3.21), duration(75), duration(3700)
    ('3.2 s', '1 min 15 s', '1 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
