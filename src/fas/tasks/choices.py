"""Questions from local files, as tasks of lm-evaluation-harness: multiple choice, partial contexts, last words.

A file (JSON list, JSON lines, Parquet, Arrow) has one of three shapes, those of llm-foundry's in-context-learning sets:
``query``, ``choices``, ``gold`` (PIQA, ARC, HellaSwag, OpenBookQA, COPA, BoolQ …): how likely is each choice after the query;
``context_options``, ``continuation``, ``gold`` (WinoGrande, WSC): how likely is the continuation after each of the contexts
(partial scoring, Trinh and Le 2018); ``context``, ``continuation`` (LAMBADA): is the continuation what the model says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.tasks.reading.contents import kind_of, refuse_archive
from fas.tasks.reading.journal import Reading
from fas.tasks.reading.names import TABLES, form_of, shown, stem_of
from fas.tasks.reading.tables import read_table, short, whole

ENDINGS = {ending: form for ending, form in TABLES.items() if form in ("json", "parquet", "arrow")}
"""Of tables whose cells can hold lists."""

Row = Mapping[Any, Any]


@dataclass(frozen=True)
class Shape:
    """Columns of a file, which of them hold a text or several, and what lm-eval is told about it."""

    texts: tuple[str, ...]
    lists: tuple[str, ...]
    settings: dict[str, Any]
    before: str
    """The column in front of what is scored."""
    metrics: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.texts, *self.lists, *(("gold",) if self.lists else ()))


_CHOICE = {"output_type": "multiple_choice"}
SHAPES = (
    Shape(("query",), ("choices",),
          _CHOICE | {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"},
          "query", ("acc", "acc_norm")),
    # in lm-eval a text that is a number says which of several contexts is right
    Shape(("continuation",), ("context_options",),
          _CHOICE | {"doc_to_text": "gold", "doc_to_choice": "context_options", "doc_to_target": "continuation"},
          "context_options", ("acc",)),
    Shape(("context", "continuation"), (),
          {"output_type": "loglikelihood", "doc_to_text": "context", "doc_to_target": "continuation"},
          "context", ("acc", "perplexity")),
)  # fmt: skip
_AGGREGATED = {"acc": "mean", "acc_norm": "mean", "perplexity": "perplexity"}


def is_questions(name: str) -> bool:
    """Whether ``name`` is that of a file of questions."""
    return form_of(name, ENDINGS) is not None


def settings_of(path: Path, reading: Reading | None = None) -> dict[str, Any]:
    """What lm-eval's `ConfigurableTask` is told about the task in ``path``, which is called as the file.

    A space stands between query and choice, unless all queries end with white space of their own. Examples of a few-shot
    prompt are other rows of the file. ``reading`` is told what was read. Raises `DataError` for what has none of the shapes
    above, by row.
    """
    reading = reading or Reading()
    shape, rows = _read(path, reading)
    reading.add(path, len(rows))
    befores = [row[shape.before] for row in rows]
    ends = [text[-1:] for before in befores for text in ([before] if isinstance(before, str) else before)]
    delimiter = "" if all(end.isspace() for end in ends) else " "
    if not shape.lists:  # lm-eval puts nothing between what it asks for the likelihood of
        rows, delimiter = [row | {"continuation": delimiter + row["continuation"]} for row in rows], ""
    return shape.settings | {
        "task": stem_of(path.name),
        "custom_dataset": _dataset_of(rows),
        "test_split": "test",
        "target_delimiter": delimiter,
        "metric_list": [
            {"metric": name, "aggregation": _AGGREGATED[name], "higher_is_better": name != "perplexity"}
            for name in shape.metrics
        ],
    }


def _dataset_of(rows: list[dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def load(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    return load


def _read(path: Path, reading: Reading) -> tuple[Shape, list[dict[str, Any]]]:
    refuse_archive(path)
    form = form_of(path.name, ENDINGS)
    if form is None or kind_of(path) != "file":
        raise DataError(f"{shown(path)} is no file of questions; give one ({', '.join(ENDINGS)})")
    table = read_table(path, form, lambda head: True, reading)
    if not len(table.rows):
        raise DataError(f"{shown(path)} holds no questions")
    shape = next((shape for shape in SHAPES if set(shape.columns) <= set(table.rows[0])), None)
    if shape is None:
        known = "; or ".join(", ".join(shape.columns) for shape in SHAPES)
        raise DataError(f"{shown(path)} has the columns {table.columns}; questions have {known}")
    table = table.only(shape.columns)
    for number, row in enumerate(table.rows):
        where = f"{table.source}: question {number + 1}"
        if wrong := _wrong(shape, row):
            raise DataError(f"{where}: {wrong}")
        for text in (*(row[name] for name in shape.texts), *(option for name in shape.lists for option in row[name])):
            whole(text, lambda where=where: where)
    return shape, [{name: row[name] for name in shape.columns} for row in table.rows]


def _wrong(shape: Shape, row: Row) -> str:
    """What is wrong with ``row``; empty if nothing is."""
    for name in shape.columns:
        if name not in row:
            return f"there is no {name}"
    for name in shape.texts:
        if not isinstance(row[name], str) or not row[name].strip():
            return f"{name}={short(row[name])} is no text"
    for name in shape.lists:
        options, gold = row[name], row["gold"]
        if not isinstance(options, list) or len(options) < 2:
            return f"{name}={short(options)} is no list of two or more texts"
        if not all(isinstance(option, str) and option.strip() for option in options):
            return f"{name}={short(options)} has an entry that is no text"
        if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(options):
            return f"gold={short(gold)} is no number from 0 to {len(options) - 1}"
    return ""
