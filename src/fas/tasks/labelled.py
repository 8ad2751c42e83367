"""Labelled texts from where a user has them: local tables or a data set of the hub; split without leaks."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.tasks.glue import Layout, Place, TextTask
from fas.tasks.hub import from_hub
from fas.tasks.text import EVALUATION_SHARE, HELD_OUT_SHARE

_DELIMITED = {".tsv": "\t", ".txt": "\t", ".csv": ","}
_TRAINING, _EVALUATION = ("train",), ("validation", "valid", "dev", "test")
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


def load_labelled(task: TextTask, data: str | None, eval_data: str | None = None) -> LabelledData:
    """``data`` (None: the task's own data set of the hub) by use; ``eval_data``: what is evaluated on, several after commas.

    Without ``eval_data`` it is the hub's validation split, the files of a folder that are called dev, valid or test, or
    10 % of the rows at random. Held out are 5 % of the training rows at random, at most `MOST_HELD_OUT`. Raises `DataError`
    for a missing file, an unknown layout, a row without label, or too few rows.
    """
    training, evaluation = _sides(task, data, eval_data)
    if not evaluation:
        training, evaluation = _parted(training, max(1, round(len(training) * EVALUATION_SHARE)))
    seen = {row.key for row in evaluation}
    kept = [row for row in training if row.key not in seen]
    held = min(MOST_HELD_OUT, max(1, round(len(kept) * HELD_OUT_SHARE)))
    if len(kept) <= held or not evaluation:
        raise DataError(
            f"{data or task.hub} leaves {len(kept)} rows to train on and {len(evaluation)} to evaluate on; give more, or other "
            "--eval-data"
        )
    rest, held_out = _parted(kept, held)
    return LabelledData(rest, held_out, evaluation, len(training) - len(kept))


def evaluation_rows(task: TextTask, data: str | None, eval_data: str | None = None) -> list[Labelled]:
    """Only what `load_labelled` evaluates on."""
    training, evaluation = _sides(task, data, eval_data)
    return evaluation or _parted(training, max(1, round(len(training) * EVALUATION_SHARE)))[1]


def _sides(task: TextTask, data: str | None, eval_data: str | None) -> tuple[list[Labelled], list[Labelled]]:
    path = Path(data) if data else None
    if path is not None and path.is_dir():
        training, evaluation = _folder(task, path, find_evaluation=eval_data is None)
    elif path is not None and (path.exists() or path.suffix in {*_DELIMITED, ".json", ".jsonl"}):
        training, evaluation = read(task, path), []
    elif data is not None and data.startswith((".", "/", "~")):
        raise DataError(f"{data} does not exist; give a table, a folder with tables, or the name of a hub data set")
    else:
        training, evaluation = _from_hub(task, data, validation=eval_data is None)
    if eval_data is not None:
        files = [Path(name.strip()) for name in eval_data.split(",")]
        evaluation = [row for file in files for row in read(task, file)]
    return training, evaluation


def _parted(rows: list[Labelled], count: int) -> tuple[list[Labelled], list[Labelled]]:
    """All but ``count`` of ``rows``, and those, drawn at random: tables are often sorted by label."""
    drawn = set(random.Random(0).sample(range(len(rows)), min(count, len(rows))))
    return [row for i, row in enumerate(rows) if i not in drawn], [rows[i] for i in sorted(drawn)]


def _folder(task: TextTask, folder: Path, find_evaluation: bool) -> tuple[list[Labelled], list[Labelled]]:
    files = sorted(file for file in folder.iterdir() if file.suffix in {*_DELIMITED, ".json", ".jsonl"})
    training = [
        file for file in files if file.stem.lower().endswith(_TRAINING) or file.stem.lower().startswith(_TRAINING)
    ]
    if not training:
        raise DataError(f"{folder} has no table called train (.tsv, .csv, .txt, .json, .jsonl); name the file itself")
    others = [file for file in files if file not in training] if find_evaluation else []
    for name in _EVALUATION:
        if found := [file for file in others if name in file.stem.lower()]:
            return [row for file in training for row in read(task, file)], [
                row for file in found for row in read(task, file)
            ]
    return [row for file in training for row in read(task, file)], []


def read(task: TextTask, path: Path) -> list[Labelled]:
    """The rows of one local table. Raises `DataError` if it is missing or in no layout that ``task`` knows."""
    if not path.exists():
        raise DataError(f"{path} does not exist; give a table (.tsv, .csv, .txt with tabs, .json, .jsonl)")
    try:
        if path.suffix in _DELIMITED:
            return _delimited(task, path)
        if path.suffix in (".json", ".jsonl"):
            return _rows(task, json_rows(path), str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    raise DataError(
        f"{path} has the ending {path.suffix!r}; FAS reads labelled texts from .tsv, .csv, .txt, .json, .jsonl"
    )


def _delimited(task: TextTask, path: Path) -> list[Labelled]:
    delimiter = _DELIMITED[path.suffix]
    # quotation marks of a tab-separated file are part of its text, and often unbalanced
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = [line for line in csv.reader(file, delimiter=delimiter, quoting=quoting) if line]
    if not lines:
        raise DataError(f"{path} holds no rows")
    head = lines[0]
    if any(layout.named and set(layout.places) <= set(head) for layout in task.layouts):
        return _rows(task, (dict(zip(head, line, strict=False)) for line in lines[1:]), str(path))
    return _rows(task, (dict(enumerate(line)) for line in lines), str(path))


def json_rows(path: Path) -> Iterable[Mapping[Place, Any]]:
    """The rows of a JSON list or of JSON lines; raises `DataError` for anything else."""
    text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text) if path.suffix == ".json" and text.lstrip().startswith("[") else None
        if found is None:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(f"{path} cannot be read as {path.suffix}: {error}") from None
    if not all(isinstance(row, dict) for row in found):
        raise DataError(f"{path} is no list of rows with named columns")
    return found


def _from_hub(task: TextTask, source: str | None, validation: bool) -> tuple[list[Labelled], list[Labelled]]:
    source = source or task.hub
    if source is None:
        raise DataError(f"the task {task.name} has no data of its own; give --data")
    table = from_hub(source, "table")
    if "train" not in table:
        raise DataError(
            f"{source} has no split called train, but {', '.join(table)}; give --data and --eval-data files"
        )
    found = next((split for split in (task.validation, *_EVALUATION) if split in table), None) if validation else None
    evaluation = _rows(task, table[found], f"{source}, {found}") if found else []
    return _rows(task, table["train"], source), evaluation


def _rows(task: TextTask, rows: Iterable[Mapping[Place, Any]], source: str) -> list[Labelled]:
    listed = list(rows)
    if not listed:
        raise DataError(f"{source} holds no rows")
    layout = _layout(task, listed[0], source)
    found = []
    for number, row in enumerate(listed):
        values = [row.get(place) for place in layout.places]
        if any(value is None or value == "" for value in values):
            lacking = layout.places[next(i for i, value in enumerate(values) if value is None or value == "")]
            raise DataError(f"{source}: row {number + 1} has nothing in column {lacking!r}; mend or remove it")
        pair = None if layout.pair is None else str(row[layout.pair]).strip()
        found.append(Labelled(str(row[layout.text]).strip(), pair, row[layout.label]))
    return found


def _layout(task: TextTask, row: Mapping[Place, Any], source: str) -> Layout:
    """The first layout of ``task`` whose columns ``row`` has."""
    named = isinstance(next(iter(row)), str)
    for layout in task.layouts:
        if layout.named != named or not set(layout.places) <= set(row) or len(row) < (layout.columns or 0):
            continue
        if named or _is_label(task, row[layout.label]):  # else it is the header of something else
            return layout
    known = "; ".join(" and ".join(map(repr, layout.places)) for layout in task.layouts if layout.named == named)
    columns = ", ".join(map(str, row)) if named else f"{len(row)} columns and no header that is known"
    raise DataError(
        f"{source} has {columns}; {task.name} looks for {known or 'named columns'}: say which with --text-column, "
        "--label-column (and --pair-column), by name or by number from 0"
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
    found = {str(row.label).strip() for row in rows}
    if len(found) < 2:
        raise DataError(f"{source} has one class only ({', '.join(found)}); a classification needs two")
    return tuple(sorted(found, key=lambda name: (0, int(name), name) if name.lstrip("-").isdigit() else (1, 0, name)))


def label_of(task: TextTask, names: Sequence[str], row: Labelled) -> int | float:
    """The number of the row's class, or its score; raises `DataError` for a label that is neither."""
    name = str(row.label).strip()
    if task.regression:
        try:
            return float(name)
        except ValueError:
            raise DataError(f"{name!r} is no score; {task.name} needs a number for {row.text[:40]!r}") from None
    if name not in names and task.labels is not None and name.isdigit() and int(name) < len(task.labels):
        name = task.labels[int(name)]  # the number of the data; a model may have another order
    if name in names:
        return names.index(name)
    raise DataError(
        f"{name!r} is none of the classes {', '.join(names)} (of {row.text[:40]!r}); are its labels public?"
    )
