"""What was read of a user's data and what was skipped: said in two lines, and kept in the record of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fas.progress import Progress, Silent
from fas.tasks.reading.names import shown

NAMED = 4
"""Files that are named in a line; of more their number is told."""
KEPT = 100
"""Files that are named in a record."""


@dataclass(frozen=True)
class Entry:
    """A file or split that was read."""

    name: str
    use: str
    """``training``, ``held out``, ``evaluated``; empty where it is divided."""
    count: int
    """Documents or rows in it."""
    what: str = "file"
    """Or ``folder``, or ``split``."""


@dataclass
class Reading:
    """What one command reads: loaders fill it, `tell` says it."""

    progress: Progress = field(default_factory=Silent)
    unit: str = "documents"
    read: list[Entry] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Reasons by name."""
    notes: list[str] = field(default_factory=list)
    """What else was decided, a line each."""

    def add(self, name: object, count: int, use: str = "", what: str = "file") -> None:
        """``count`` documents or rows of a file, folder or split were read."""
        self.read.append(Entry(shown(name), use, count, what))

    def skip(self, name: object, reason: str) -> None:
        """A file, folder or split is left alone."""
        self.skipped[shown(name)] = reason

    def note(self, text: str) -> None:
        """One more line, if it is not there yet."""
        if text not in self.notes:
            self.notes.append(text)

    def lines(self) -> list[str]:
        """What was read and what was skipped, each in one line; then the notes."""
        said = []
        if self.read:
            uses = list(dict.fromkeys(entry.use for entry in self.read))
            parts = []
            for use in uses:
                names = _few([entry.name for entry in self.read if entry.use == use])
                parts.append(names if use in ("", "training") else f"{use}: {names}")
            kinds = {entry.what for entry in self.read}
            kind = kinds.pop() if len(kinds) == 1 else "place"
            files = f"{len(self.read):,} {kind}{'s' * (len(self.read) > 1)}"
            total = sum(entry.count for entry in self.read)
            said.append(f"Data: read {files} ({'; '.join(parts)}): {total:,} {self.unit}")
        if self.skipped:
            said.append(f"skipped: {self._skipped()}")
        return said + self.notes

    def but_skipped(self) -> str:
        """For an error that nothing was found: what was skipped, in brackets; empty if nothing was."""
        return f" (skipped: {self._skipped()})" if self.skipped else ""

    def _skipped(self) -> str:
        """All of a few; of many the first of each reason, and how many there are."""
        if len(self.skipped) <= 2 * NAMED:
            return ", ".join(f"{name} ({reason})" for name, reason in self.skipped.items())
        counts = Counter(self.skipped.values())
        firsts = {reason: name for name, reason in reversed(self.skipped.items())}
        return ", ".join(
            f"{firsts[reason]} ({reason})" if count == 1 else f"{count:,} files as {firsts[reason]} ({reason})"
            for reason, count in counts.items()
        )

    def tell(self) -> None:
        """Say it."""
        for line in self.lines():
            self.progress.note(line)

    def about(self) -> dict[str, Any]:
        """The same for a record: at most `KEPT` files by name, and how many there are."""
        read = [{"name": e.name, "count": e.count} | ({"use": e.use} if e.use else {}) for e in self.read[:KEPT]]
        found: dict[str, Any] = {"files": len(self.read), self.unit: sum(e.count for e in self.read), "read": read}
        if self.skipped:
            found |= {"files_skipped": len(self.skipped), "skipped": dict(list(self.skipped.items())[:KEPT])}
        return found | ({"notes": self.notes} if self.notes else {})


def _few(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:NAMED])} and {more:,} more"
