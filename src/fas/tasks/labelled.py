"""Labelled texts from where a user has them: local tables or a data set of the hub; split without leaks."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.tasks.glue import LABEL_HEADERS, Layout, Place, TextTask
from fas.tasks.hub import from_hub
from fas.tasks.reading.contents import kind_of, refuse_archive
from fas.tasks.reading.journal import Reading
from fas.tasks.reading.labels import all_characters, check_classes, check_scores, kind_of_label, score_of
from fas.tasks.reading.names import LABELLED, TEST, VALIDATION, form_of, shown
from fas.tasks.reading.places import Found, files_in
from fas.tasks.reading.tables import Table, even, read_table, short, text_at
from fas.tasks.reading.uses import BY_TEST, BY_VALIDATION, Uses, by_split, by_use, evaluated, note_test
from fas.tasks.text import EVALUATION_SHARE, HELD_OUT_SHARE

_SHORT_NUMBER = re.compile(r"-?[0-9]{1,18}")
MOST_HELD_OUT = 2000


@dataclass(frozen=True)
class Labelled:
    """One text, or pair of texts, and its label as the data has it."""

    text: str
    pair: str | None
    label: Any

    @property
    def key(self) -> tuple[str, str | None]:
        """What makes two of them the same text."""
        return (self.text, self.pair)


@dataclass(frozen=True)
class LabelledData:
    """Labelled texts by use; no text stands in two lists."""

    training: list[Labelled]
    held_out: list[Labelled]
    """Neither trained nor evaluated on: decides which of ANN and control is better."""
    evaluation: list[Labelled]
    removed: int = 0
    """Training texts that were left out because they stand in the evaluation data too."""


def load_labelled(
    task: TextTask, data: str | None, eval_data: str | None = None, reading: Reading | None = None
) -> LabelledData:
    """``data`` (None: the task's own data set of the hub) by use; ``eval_data``: what is evaluated on, several after commas.

    Without ``eval_data`` it is the test split, by the names of files or of the hub's splits, else validation (of GLUE, whose
    test labels are not public, validation), else 10 % of the rows at random. Held out is the validation split where it is not
    evaluated on, else 5 % of the training rows at random; at most `MOST_HELD_OUT`. ``reading`` is told what was read and
    skipped. Raises `DataError` for a missing file, an unknown layout, a row without label, labels of several kinds, or too few
    rows.
    """
    training, held_out, evaluation = _sides(task, data, eval_data, _for_rows(reading))
    if not evaluation:
        training, evaluation = _parted(training, max(1, round(len(training) * EVALUATION_SHARE)))
    seen = {row.key for row in evaluation}
    held_out = [row for row in held_out if row.key not in seen]
    seen |= {row.key for row in held_out}
    kept = [row for row in training if row.key not in seen]
    removed = len(training) - len(kept)
    if held_out:
        held_out = _parted(held_out, MOST_HELD_OUT)[1]
    else:
        kept, held_out = _parted(kept, min(MOST_HELD_OUT, max(1, round(len(kept) * HELD_OUT_SHARE))))
    if not kept or not evaluation:
        raise DataError(
            f"{data or task.hub} leaves {len(kept)} rows to train on and {len(evaluation)} to evaluate on; give more, or other "
            "--eval-data"
        )
    return LabelledData(kept, held_out, evaluation, removed)


def evaluation_rows(
    task: TextTask, data: str | None, eval_data: str | None = None, reading: Reading | None = None
) -> list[Labelled]:
    """Only what `load_labelled` evaluates on."""
    reading = _for_rows(reading)
    if eval_data is not None:
        return _given(task, eval_data, reading)
    place, uses = _uses(task, data, False, reading)
    if uses.evaluation:
        return place.rows(uses.evaluation, "evaluated")
    training = place.training(uses)
    return _parted(training, max(1, round(len(training) * EVALUATION_SHARE)))[1]


def _for_rows(reading: Reading | None) -> Reading:
    reading = reading or Reading()
    reading.unit = "rows"
    return reading


def _sides(task: TextTask, data: str | None, eval_data: str | None, reading: Reading) -> tuple[list[Labelled], ...]:
    """Training, held out and evaluation; the last two may be empty."""
    place, uses = _uses(task, data, eval_data is not None, reading)
    training = place.training(uses)
    note_test(place.parts, reading)
    held_out = place.rows(uses.held_out, "held out")
    if eval_data is not None:
        return training, held_out, _given(task, eval_data, reading)
    return training, held_out, place.rows(uses.evaluation, "evaluated")


def _uses(task: TextTask, data: str | None, given: bool, reading: Reading) -> tuple[_Place, Uses[Found | str]]:
    place = _Place(task, data, reading)
    order = BY_TEST if task.hub is None else BY_VALIDATION
    if not given and (order is BY_TEST or VALIDATION not in place.parts):
        place.leave_unlabelled_test()
    return place, by_use(place.parts, reading, given, order)


def _given(task: TextTask, eval_data: str, reading: Reading) -> list[Labelled]:
    """The rows of files, or folders, after commas, that were given to evaluate on."""
    found: list[Labelled] = []
    for name in eval_data.split(","):
        path = Path(name.strip())
        if kind_of(path) == "folder":
            place = _Place(task, str(path), reading)
            found += place.rows(evaluated(place.parts, reading), "evaluated")
        else:
            rows = read(task, path, reading)
            reading.add(path, len(rows), "evaluated")
            found += rows
    return found


def _parted(rows: list[Labelled], count: int) -> tuple[list[Labelled], list[Labelled]]:
    """All but ``count`` of ``rows``, and those, drawn at random: tables are often sorted by label."""
    drawn = set(random.Random(0).sample(range(len(rows)), min(count, len(rows))))
    return [row for i, row in enumerate(rows) if i not in drawn], [rows[i] for i in sorted(drawn)]


class _Place:
    """Where labelled texts lie: files, or splits of a data set of the hub, by split (``parts``)."""

    def __init__(self, task: TextTask, data: str | None, reading: Reading) -> None:
        self.task, self.reading = task, reading
        self.tables: Mapping[str, Any] = {}
        self.parts: Mapping[str | None, Sequence[Found | str]]
        kind = kind_of(data) if data else None
        if data and kind == "folder":
            self.source = data
            self.parts = files_in(Path(data), LABELLED, reading)
        elif data and (kind == "file" or form_of(data, LABELLED) is not None):
            self.source = data
            self.parts = {None: [Found(Path(data), shown(data))]}
        elif data is not None and data.startswith((".", "/", "~")):
            raise DataError(
                f"{shown(data)} does not exist; give a table, a folder with tables, or the name of a hub data set"
            )
        else:
            self.source = self._ask_the_hub(data)

    def _ask_the_hub(self, data: str | None) -> str:
        source = data or self.task.hub
        if source is None:
            raise DataError(f"the task {self.task.name} has no data of its own; give --data")
        self.tables = from_hub(source, "table")
        self.parts = by_split(list(self.tables), source)
        own = self.task.validation
        if own in self.tables and len(self.parts.get(VALIDATION, ())) > 1:
            for other in self.parts[VALIDATION]:
                if other != own:
                    self.reading.skip(f"{source}, split {other}", f"{own} is evaluated on")
            self.parts = {**self.parts, VALIDATION: [own]}
        return source

    def table(self, item: Found | str) -> Table:
        """One file or split."""
        if isinstance(item, Found):
            return _table(self.task, item.path, self.reading)
        return Table(f"{self.source}, split {item}", self.tables[item])

    def rows(self, items: Sequence[Found | str], use: str) -> list[Labelled]:
        """Those of some of its ``parts``, which are told as read for ``use``; labels of all are of one kind."""
        found: list[Labelled] = []
        for item in items:
            rows = _rows(self.task, self.table(item))
            where, what = (item, "file") if isinstance(item, Found) else (f"{self.source}, split {item}", "split")
            self.reading.add(where, len(rows), use, what)
            found += rows
        return found

    def training(self, uses: Uses[Found | str]) -> list[Labelled]:
        """The rows to train on; raises `DataError` where there are none."""
        found = self.rows(uses.trained_on(self.source, self.parts), "training" if uses.divided else "")
        if not found:
            raise DataError(f"{shown(self.source)} holds no table of labelled texts{self.reading.but_skipped()}")
        return found

    def leave_unlabelled_test(self) -> None:
        """Skip a test split without labels, as contests have them."""
        tables = [self.table(item) for item in self.parts.get(TEST, ())]
        if not all(_unlabelled(self.task, table, number) for table in tables for number in range(len(table.rows))):
            return
        for item in self.parts.get(TEST, ()):
            self.reading.skip(item, "has no labels")
        self.parts = {split: items for split, items in self.parts.items() if split != TEST}


def _unlabelled(task: TextTask, table: Table, number: int) -> bool:
    row = table.rows[number]
    return all(row.get(layout.label) in (None, "", -1, "-1") for layout in task.layouts)


def read(task: TextTask, path: Path, reading: Reading | None = None) -> list[Labelled]:
    """The rows of one local table. Raises `DataError` if it is missing or in no layout that ``task`` knows."""
    return _rows(task, _table(task, path, reading or Reading()))


def _table(task: TextTask, path: Path, reading: Reading) -> Table:
    if kind_of(path) is None:
        raise DataError(
            f"{shown(path)} does not exist; give a table (.tsv, .csv, .txt with tabs, .json, .jsonl, .parquet)"
        )
    refuse_archive(path)
    form = form_of(path.name, LABELLED)
    if form is None:
        raise DataError(
            f"{shown(path)} has the ending {path.suffix!r}; FAS reads labelled texts from .tsv, .csv, .txt, .json, .jsonl, "
            ".parquet, .arrow, also compressed"
        )
    return read_table(path, form, lambda head: any(_fits(layout, head) for layout in task.layouts), reading)


def _fits(layout: Layout, head: Sequence[str]) -> bool:
    return layout.named and set(layout.places) <= set(head)


def _rows(task: TextTask, table: Table) -> list[Labelled]:
    if not len(table.rows):
        raise DataError(f"{table.source} holds no rows")
    layout = _layout(task, table)
    if not layout.named:
        _refuse_header(table, layout)
        even(table, layout.columns if layout.more else None)
    table = table.only(layout.places)
    label: Place = layout.label
    found = []
    for number, row in enumerate(table.rows):
        texts = [text_at(table, number, place).strip() for place in layout.texts]
        if row.get(label) is None or not all(texts) or row[label] == "":
            lacking = next((p for p, text in zip(layout.texts, texts, strict=True) if not text), label)
            raise DataError(f"{table.at(number)} has nothing in column {lacking!r}; mend or remove it")
        found.append(Labelled(texts[0], texts[1] if len(texts) > 1 else None, row[label]))
    if task.regression:
        check_scores(table, label)
    else:
        check_classes(table, label, task.labels or ())
    return found


def _layout(task: TextTask, table: Table) -> Layout:
    """The first layout of ``task`` whose columns the first row of ``table`` has."""
    row, named = table.rows[0], table.named
    for layout in task.layouts:
        if layout.named != named or not set(layout.places) <= set(row) or len(row) < (layout.columns or 0):
            continue
        if named or _is_label(task, row[layout.label]):  # else it is the header of something else
            return layout
    known = "; ".join(" and ".join(map(repr, layout.places)) for layout in task.layouts if layout.named == named)
    if not named:
        by_name = next((layout.places for layout in task.layouts if layout.named), ())
        known = known or " and ".join(map(repr, by_name))
    has = f"has the columns {table.columns}" if named else f"begins with {table.columns}, no header that is known,"
    raise DataError(
        f"{table.source} {has} and {task.name} looks for {known or 'named columns'}: say which with --text-column, "
        "--label-column (and --pair-column), by name or by number from 0"
    )


def _refuse_header(table: Table, layout: Layout) -> None:
    """Raise `DataError` where the first row of a table whose columns are told by number names them."""
    label = table.rows[0][layout.label]
    if str(label).strip().lower() in LABEL_HEADERS:
        raise DataError(
            f"{table.source} begins with {table.columns}, which looks like the names of its columns; give --text-column and "
            "--label-column by these names, or remove the line"
        )


def _is_label(task: TextTask, value: Any) -> bool:
    """Whether ``value`` can be a label of ``task``; any is one where the classes are those of the data."""
    try:
        label_of(task, task.labels or (str(value),), Labelled("", None, value))
    except DataError:
        return False
    return True


def class_names(task: TextTask, rows: Sequence[Labelled], source: str) -> tuple[str, ...]:
    """The classes in their order: the task's, or those of the training ``rows``, sorted (numbers as numbers)."""
    if task.labels is not None:
        return task.labels
    kinds = {kind_of_label(row.label): row.label for row in rows}
    if len(kinds) > 1 and not all_characters(row.label for row in rows):
        told = " and ".join(f"{short(label)} ({kind})" for kind, label in kinds.items())
        raise DataError(f"{source} has labels of several kinds, {told}; write all in one way")
    found = {str(row.label).strip() for row in rows}
    if len(found) < 2:
        raise DataError(f"{source} has one class only ({', '.join(found)}); a classification needs two")
    return tuple(sorted(found, key=_in_order))


def _in_order(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if _SHORT_NUMBER.fullmatch(name) else (1, 0, name)


def label_of(task: TextTask, names: Sequence[str], row: Labelled) -> int | float:
    """The number of the row's class, or its score; raises `DataError` for a label that is neither."""
    name = str(row.label).strip()
    if task.regression:
        if (score := score_of(row.label)) is None:
            raise DataError(f"{short(name)} is no score; {task.name} needs a finite number for {row.text[:40]!r}")
        return score
    known = task.labels or ()
    if name not in names and _SHORT_NUMBER.fullmatch(name) and 0 <= int(name) < len(known):
        name = known[int(name)]  # the number of the data; a model may have another order
    if name in names:
        return names.index(name)
    raise DataError(
        f"{short(name)} is none of the classes {', '.join(names)} (of {row.text[:40]!r}); are its labels public?"
    )
