"""Text from where a user has it: ``builtin``, local files or folders, or a data set of the hub; split without leaks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.tasks import builtin
from fas.tasks.hub import from_hub

EVALUATION_SHARE = 0.1
HELD_OUT_SHARE = 0.05
PARTS = 20
"""Of each document, where there are too few documents to divide: one part is what is held out, two are what is evaluated."""
LEAST_CHARACTERS = 50
"""Of a part: shorter texts are not cut."""
_BOUNDARIES = (re.compile(r"\n[ \t\r]*\n"), re.compile(r"\n"), re.compile(r"\s"))
"""Where a document is cut, best first: between paragraphs, lines, words."""
_TABLES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv"}
_PLAIN = {".txt", ".md", ".text", ""}


@dataclass(frozen=True)
class TextData:
    """Documents by use; no document stands in two lists."""

    training: list[str]
    """Stage 1 trains, and Stage 2 calibrates, on these."""
    held_out: list[str]
    """Text that is neither trained nor evaluated on: decides which of ANN and control is better."""
    evaluation: list[str]
    """What reported figures are measured on."""
    note: str = ""
    """How documents were cut, where there were too few to divide."""


def load_text(data: str, eval_data: str | None = None) -> TextData:
    """Documents of ``data``; ``eval_data`` or, without it, the last 10 % of the documents are the evaluation text.

    A document that stands in both is taken out of the training text. Too few documents to divide (a book in one file) are cut
    into `PARTS` parts each, between paragraphs where there are some. Raises `DataError` for a missing file, an unknown
    format, or too little text.
    """
    if data == "builtin":
        training, held_out = builtin.training_documents(), builtin.held_out_documents()
        return _disjoint(data, training, held_out, _evaluation(eval_data or data))
    found, note = documents(data), ""
    if eval_data:
        evaluation = _evaluation(eval_data)
        if len(found) < 2:  # a part of what is evaluated would not be known again
            found, note = _divisible(_without(data, found, set(evaluation)), 2)
        training = found
    else:
        found, note = _divisible(found, 3)
        cut = len(found) - max(1, round(len(found) * EVALUATION_SHARE))
        training, evaluation = found[:cut], found[cut:]
    keep = len(training) - max(1, round(len(training) * HELD_OUT_SHARE))
    if keep < 1 or not evaluation:
        least = 2 if eval_data else 3
        raise DataError(
            f"{data} has {len(found)} documents; at least {least} are needed to train, hold out and evaluate (documents end "
            f"with <|endoftext|> or an empty line), or long ones ({PARTS * LEAST_CHARACTERS} characters), which are cut"
        )
    return _disjoint(data, training[:keep], training[keep:], evaluation, f"{data} {note}" if note else "")


def _without(data: str, found: list[str], seen: set[str]) -> list[str]:
    """``found`` without ``seen``; raises `DataError` where nothing is left."""
    left = [document for document in found if document not in seen]
    if not left:
        raise DataError(f"the documents of {data} are all in the evaluation text too; give another --eval-data")
    return left


def _divisible(found: list[str], least: int) -> tuple[list[str], str]:
    """``found`` itself, or the parts of its documents where those are fewer than ``least``; and a note of that."""
    if len(found) >= least or min(map(len, found)) < PARTS * LEAST_CHARACTERS:
        return found, ""
    cut = [part for document in found for part in _parts(document)]
    what = "one document" if len(found) == 1 else f"{len(found)} documents"
    return (
        cut,
        f"has {what}, too few to hold some out; it is cut into {len(cut)} parts, between paragraphs where there are some",
    )


def _parts(document: str) -> list[str]:
    """``document`` in `PARTS` parts of about one length, one after the other."""
    size = len(document) // PARTS
    places = [_boundary(document, number * size, size // 2) for number in range(1, PARTS)]
    parts = [document[start:end].strip() for start, end in zip([0, *places], [*places, len(document)], strict=True)]
    return [part for part in parts if part]


def _boundary(document: str, place: int, reach: int) -> int:
    """Where ``document`` is cut: at the best boundary within ``reach`` characters after ``place``, or there."""
    for pattern in _BOUNDARIES:
        if (found := pattern.search(document, place, place + reach)) is not None:
            return found.end()
    return place


def _disjoint(data: str, training: list[str], held_out: list[str], evaluation: list[str], note: str = "") -> TextData:
    held_out = _without(data, held_out, set(evaluation))
    training = _without(data, training, {*evaluation, *held_out})
    return TextData(training, held_out, evaluation, note)


def _evaluation(source: str) -> list[str]:
    return builtin.evaluation_documents() if source == "builtin" else documents(source)


def evaluation_text(data: str, eval_data: str | None = None) -> list[str]:
    """Only the evaluation part of `load_text`, without need of training text."""
    if eval_data or data == "builtin":
        return _evaluation(eval_data or data)
    found, _ = _divisible(documents(data), 3)
    return found[len(found) - max(1, round(len(found) * EVALUATION_SHARE)) :]


def documents(source: str) -> list[str]:
    """All documents of ``source``: ``builtin``, a file (text, JSON, CSV, TSV), a folder of those, or a hub data set.

    A hub data set is named as on the hub, with its configuration after a colon and its split, if not that for training, after
    an at sign: ``Salesforce/wikitext:wikitext-2-raw-v1@test``.
    """
    if source == "builtin":
        return builtin.training_documents()
    path = Path(source)
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in {*_PLAIN, *_TABLES} and f.is_file())
        found = [document for file in files for document in _read(file)]
    elif path.exists():
        found = _read(path)
    elif source.startswith((".", "/", "~")) or path.suffix in {*_TABLES, ".txt"}:
        raise DataError(f"{source} does not exist; give a file, a folder, 'builtin', or the name of a hub data set")
    else:
        found = _from_hub(source)
    found = [document.strip() for document in found if document.strip()]
    if not found:
        raise DataError(f"{source} holds no text")
    return found


def _read(path: Path) -> list[str]:
    if path.suffix in _TABLES:
        return _read_table(path)
    if path.suffix not in _PLAIN:
        raise DataError(f"{path} has the ending {path.suffix!r}; FAS reads text, .json, .jsonl, .csv and .tsv")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    separator = builtin.SEPARATOR if builtin.SEPARATOR in text else "\n\n"
    return text.split(separator)


def _read_table(path: Path) -> list[str]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    options: dict[str, Any] = {"delimiter": "\t"} if path.suffix == ".tsv" else {}
    try:
        table = load_dataset(_TABLES[path.suffix], data_files=str(path), split="train", **options)
    except (DatasetGenerationError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as {path.suffix}: {str(error.__cause__ or error).splitlines()[0]}"
        ) from None
    return _texts(table[_text_column(table.column_names, str(path))])


def _from_hub(source: str) -> list[str]:
    place, _, split = source.partition("@")
    table = from_hub(place, "file", split or "train")
    return _texts(table[_text_column(table.column_names, source)])


def _texts(column: Iterable[Any]) -> list[str]:
    return [str(value) for value in column if value is not None]


def _text_column(columns: Sequence[str], source: str) -> str:
    for name in ("text", "content", "document", "sentence", "story"):
        if name in columns:
            return name
    if len(columns) == 1:
        return columns[0]
    raise DataError(f"{source} has the columns {list(columns)}; name the one with the text 'text'")
