"""Images with questions and answers, captions or classes, from where a user has them: a folder, a table beside its images, or a
data set of the hub."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.tasks.glue import CLASSIFIED
from fas.tasks.hub import from_hub
from fas.tasks.pictures import check_images, identity
from fas.tasks.reading.contents import kind_of
from fas.tasks.reading.journal import Reading
from fas.tasks.reading.names import TABLES, TEST, ending_of, set_aside, shown, splits_of
from fas.tasks.reading.places import Found, files_in
from fas.tasks.reading.seen import Seen, entries_of, is_table, is_unlabelled, seen_in, seen_of
from fas.tasks.reading.uses import Uses, by_split, by_use, evaluated, note_test
from fas.tasks.text import EVALUATION_SHARE, HELD_OUT_SHARE

MOST_HELD_OUT = 2000
_STORED = {ending: TABLES[ending] for ending in (".parquet", ".arrow")}
"""Endings of tables that hold their images."""


@dataclass(frozen=True)
class VisualData:
    """Examples by use. No image of the training part stands in another."""

    training: list[Seen]
    held_out: list[Seen]
    """Neither trained nor evaluated on: decides which of ANN and control is better."""
    evaluation: list[Seen]


def load_visual(task: str, data: str, eval_data: str | None = None, reading: Reading | None = None) -> VisualData:
    """``data``, a folder, a table or a data set of the hub, by use.

    A folder has ``train`` and ``test`` (or ``val``, ``dev``, …), each a folder or a table; a folder of one part has a table,
    and its images lie beside it or in ``images``. Tables (.json, .jsonl, .csv, .tsv, .parquet) have a column of images, and
    ``question`` and ``answer`` (or ``answers``), ``caption`` or ``label``; images may also lie in folders, one a class;
    easy-VQA's lists ``[question, answer, image]`` are read, too. The test split is evaluated on, else validation, which else is
    held out; without either, and without ``eval_data``, a tenth of the images is drawn. ``reading`` is told what was read and
    skipped. Raises `DataError` for what is missing or cannot be read.
    """
    reading = _for_rows(reading)
    place, uses = _uses(task, data, eval_data is not None, reading)
    training, held_out = place.training(uses), place.rows(uses.held_out, "held out")
    note_test(place.parts, reading)
    evaluation = _given(task, eval_data, reading) if eval_data is not None else place.rows(uses.evaluation, "evaluated")
    if not evaluation:
        training, evaluation = _by_image(training, EVALUATION_SHARE)
    held_out = _without(held_out, evaluation)
    kept = _without(training, [*evaluation, *held_out])
    if removed := len(training) - len(kept):
        reading.note(f"{removed:,} training rows are not trained on: the evaluation or held-out part has their images")
    if not held_out:
        kept, held_out = _by_image(kept, HELD_OUT_SHARE)
    if not kept or not held_out or not evaluation:
        raise DataError(
            f"{shown(data)} leaves {len(kept)} rows to train on, {len(held_out)} held out and {len(evaluation)} to evaluate "
            "on; give more images, or other --eval-data"
        )
    held_out = held_out[:MOST_HELD_OUT]
    check_images((row.image for row in (*kept, *held_out, *evaluation)), reading.progress)
    return VisualData(kept, held_out, evaluation)


def evaluation_seen(task: str, data: str, eval_data: str | None = None, reading: Reading | None = None) -> list[Seen]:
    """Only what `load_visual` evaluates on."""
    reading = _for_rows(reading)
    if eval_data is not None:
        found = _given(task, eval_data, reading)
    else:
        place, uses = _uses(task, data, False, reading)
        found = place.rows(uses.evaluation, "evaluated") or _by_image(place.training(uses), EVALUATION_SHARE)[1]
    check_images((row.image for row in found), reading.progress)
    return found


def read_part(task: str, place: Path) -> list[Seen]:
    """The rows of one table, of the only table of a folder, or of its folders of classes. Raises `DataError` if it cannot be
    read."""
    return seen_in(task, place, Reading())


def _for_rows(reading: Reading | None) -> Reading:
    reading = reading or Reading()
    reading.unit = "rows"
    return reading


def _uses(task: str, data: str, given: bool, reading: Reading) -> tuple[_Place, Uses[Found | str]]:
    place = _Place(task, data, reading)
    if not given:
        place.leave_unlabelled_test()
    return place, by_use(place.parts, reading, given)


def _given(task: str, eval_data: str, reading: Reading) -> list[Seen]:
    """What was given to evaluate on, a part or a place that has parts."""
    place = _Place(task, eval_data, reading)
    return place.rows(evaluated(place.parts, reading), "evaluated")


class _Place:
    """Where examples lie: folders or tables, or splits of a data set of the hub, by split (``parts``)."""

    def __init__(self, task: str, data: str, reading: Reading) -> None:
        self.task, self.source, self.reading = task, data, reading
        self.tables: Mapping[str, Any] = {}
        self.parts: Mapping[str | None, Sequence[Found | str]]
        kind, path = kind_of(data), Path(data)
        if kind == "folder":
            self.parts = _parts(task, path, reading) or {None: [Found(path, shown(path))]}
        elif kind == "file":
            self.parts = {None: [Found(path, shown(path))]}
        elif data.startswith((".", "/", "~")) or ending_of(data) in TABLES:
            raise DataError(
                f"{shown(data)} does not exist; give a folder with images and a table, the table, or a hub data set"
            )
        else:
            self.tables = from_hub(data, "folder or table")
            self.parts = by_split(list(self.tables), data)

    def rows(self, items: Sequence[Found | str], use: str) -> list[Seen]:
        """Those of some of its ``parts``, which are told as read for ``use``."""
        found: list[Seen] = []
        for item in items:
            if isinstance(item, Found):
                found += seen_in(self.task, item.path, self.reading, use)
            else:
                where = f"{self.source}, {item}"
                some = seen_of(self.task, where, self.tables[item])
                self.reading.add(where, len(some), use, "split")
                found += some
        return found

    def training(self, uses: Uses[Found | str]) -> list[Seen]:
        """The rows to train on."""
        return self.rows(uses.trained_on(self.source, self.parts), "training" if uses.divided else "")

    def leave_unlabelled_test(self) -> None:
        """Skip a test split of the hub without answers or classes, as contests have them."""
        tests = [item for item in self.parts.get(TEST, ()) if isinstance(item, str)]
        for item in tests:
            table = self.tables[item]
            images = [name for name, kind in table.features.items() if type(kind).__name__ == "Image"]
            if not is_unlabelled(self.task, table.remove_columns(images)):
                return
        for item in tests:
            self.reading.skip(item, "has no labels")
            self.parts = {split: items for split, items in self.parts.items() if split != TEST}


def _parts(task: str, folder: Path, reading: Reading) -> dict[str | None, list[Found]]:
    """Folders and tables of ``folder`` by the split that their name says; a folder of images is a class, not a part.

    Empty where it has no splits. Raises `DataError` where folder and table both say one split."""
    parts: dict[str | None, list[Found]] = {}
    entries = entries_of(folder, Reading())
    tables = [entry for entry in entries if is_table(entry.name)]
    for entry in entries:
        if kind_of(entry) == "folder":
            if not _has_parts(entry) and (task in CLASSIFIED or tables):
                continue
        elif not is_table(entry.name):
            continue
        splits = splits_of(entry.name)
        if len(splits) == 1:
            parts.setdefault(splits.pop(), []).append(Found(entry, shown(entry.name)))
    for split, items in parts.items():
        if len({kind_of(item.path) for item in items}) > 1:
            names = " and ".join(item.name for item in items)
            raise DataError(
                f"{shown(folder)} has {names} for {split}; give the one that is meant (--data, --eval-data)"
            )
    if parts:
        _skip_unsplit(folder, parts, reading)
        return parts
    if any(ending_of(table.name) not in _STORED for table in tables):
        return {}
    stored = Reading()
    found = files_in(folder, _STORED, stored)
    if not found or (sum(map(len, found.values())) == 1 and None in found):
        return {}
    for name, reason in stored.skipped.items():
        reading.skip(name, reason)
    return found


def _has_parts(folder: Path) -> bool:
    """Whether there are folders or tables in ``folder``; of a class of many images no file is looked at."""
    try:
        with os.scandir(folder) as entries:
            return any(not set_aside(e.name) and (e.is_dir() or is_table(e.name)) for e in entries)
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be read: {error.strerror}") from None


def _skip_unsplit(folder: Path, parts: Mapping[str | None, Sequence[Found]], reading: Reading) -> None:
    """Tell of files and folders beside splits that say none; folders of images may belong to a table."""
    taken = {item.path for items in parts.values() for item in items}
    tables = any(kind_of(path) == "file" for path in taken)
    for entry in sorted(folder.iterdir()):
        if entry not in taken and not (tables and kind_of(entry) == "folder" and not set_aside(entry.name)):
            reading.skip(entry.name, set_aside(entry.name) or "no split in its name, and others have one")


def _without(rows: list[Seen], others: Sequence[Seen]) -> list[Seen]:
    """``rows`` whose image is none of ``others``."""
    seen = {identity(image) for image in {row.image for row in others}}
    return [row for row in rows if identity(row.image) not in seen]


def _by_image(rows: list[Seen], share: float) -> tuple[list[Seen], list[Seen]]:
    """All but a ``share`` of the images with their rows, and those, drawn at random."""
    images = sorted({row.image for row in rows}, key=identity)
    drawn = set(random.Random(0).sample(images, min(len(images), max(1, round(len(images) * share)))))
    return [row for row in rows if row.image not in drawn], [row for row in rows if row.image in drawn]
