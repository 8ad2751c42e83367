"""Text from where a user has it: ``builtin``, local files or folders, or a data set of the hub; split without leaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.tasks import builtin
from fas.tasks.hub import from_hub

EVALUATION_SHARE = 0.1
HELD_OUT_SHARE = 0.05
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


def load_text(data: str, eval_data: str | None = None) -> TextData:
    """Documents of ``data``; ``eval_data`` or, without it, the last 10 % of the documents are the evaluation text.

    A document that stands in both is taken out of the training text. Raises `DataError` for a missing file, an unknown
    format, or too little text.
    """
    if data == "builtin":
        training, held_out = builtin.training_documents(), builtin.held_out_documents()
        return _disjoint(data, training, held_out, _evaluation(eval_data or data))
    found = documents(data)
    if eval_data:
        training, evaluation = found, _evaluation(eval_data)
    else:
        cut = len(found) - max(1, round(len(found) * EVALUATION_SHARE))
        training, evaluation = found[:cut], found[cut:]
    keep = len(training) - max(1, round(len(training) * HELD_OUT_SHARE))
    if keep < 1 or not evaluation:
        raise DataError(
            f"{data} has {len(training) + len(evaluation)} documents; at least 3 are needed to train, hold out and "
            "evaluate (documents end with <|endoftext|> or an empty line)"
        )
    return _disjoint(data, training[:keep], training[keep:], evaluation)


def _disjoint(data: str, training: list[str], held_out: list[str], evaluation: list[str]) -> TextData:
    seen = set(evaluation)
    held_out = [document for document in held_out if document not in seen]
    seen |= set(held_out)
    training = [document for document in training if document not in seen]
    if not training or not held_out:
        raise DataError(f"the documents of {data} are all in the evaluation text too; give another --eval-data")
    return TextData(training, held_out, evaluation)


def _evaluation(source: str) -> list[str]:
    return builtin.evaluation_documents() if source == "builtin" else documents(source)


def evaluation_text(data: str, eval_data: str | None = None) -> list[str]:
    """Only the evaluation part of `load_text`, without need of training text."""
    if eval_data or data == "builtin":
        return _evaluation(eval_data or data)
    found = documents(data)
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
