"""Long work says how much it is and how far: parts that are told add up to what was announced."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
import tiny

import fas
from fas.cli import show
from fas.progress import Silent, counted
from fas.runtime.control import sites_of


@dataclass
class Task:
    title: str
    total: int | None
    parts: int = 0
    finished: bool = False


class Heard(Silent):
    """Every task that was told."""

    def __init__(self) -> None:
        self.tasks = list[Task]()

    def start(self, title: str, total: int | None = None) -> None:
        self.tasks.append(Task(title, total))

    def advance(self, parts: int = 1, note: str = "") -> None:
        self.tasks[-1].parts += parts

    def done(self, summary: str = "") -> None:
        self.tasks[-1].finished = True


def test_preparing_says_how_many_batches_and_sites_it_takes() -> None:
    model, heard = tiny.ann("llama"), Heard()
    batches = [tiny.inputs_for(model, 2, 9, seed) for seed in (1, 2, 3)]
    fas.prepare(model, fas.SpikingConfig(coverage="full"), batches, progress=heard)
    sites = sum(site.kind != "group" for site in sites_of(model).values())
    assert heard.tasks == [
        Task("Looking for massive activations", 3, 3, True),
        Task(f"Sampling the inputs of {sites} sites", 3, 3, True),
        Task(f"Fitting the scales of {sites} sites", sites, sites, True),
    ]


def test_counted_items_are_parts_as_they_are_used() -> None:
    heard = Heard()
    seen = [(item, heard.tasks[-1].parts) for item in counted("abc", heard, "letters")]
    assert seen == [("a", 0), ("b", 1), ("c", 2)]
    assert heard.tasks == [Task("letters", 3, 3, True)]


def test_plain_lines_say_how_much_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: now[0])
    written = io.StringIO()
    lines = show.Lines(written)
    lines.start("work", 8)
    for seconds in (30, 30, 60):
        now[0] += seconds
        lines.advance(2, "loss 1")
    lines.start("of unknown length")
    now[0] += 21
    lines.advance()
    assert written.getvalue().splitlines() == [
        "work", "   25% (1 min 30 s left) loss 1", "   50% (1 min 0 s left) loss 1", "   75% (40.0 s left) loss 1",
        "  done (2 min 0 s)", "of unknown length", "  1",
    ]  # fmt: skip
