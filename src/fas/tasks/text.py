"""Text from where a user has it: ``builtin``, local files or folders, or a data set of the hub; split without leaks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fas.errors import DataError
from fas.tasks import builtin
from fas.tasks.hub import from_hub
from fas.tasks.reading.contents import kind_of
from fas.tasks.reading.documents import documents_of, texts_of
from fas.tasks.reading.journal import Reading
from fas.tasks.reading.names import TABLES, TEXTS, ending_of, shown
from fas.tasks.reading.places import Found, files_in
from fas.tasks.reading.tables import Table
from fas.tasks.reading.uses import by_split, by_use, evaluated, note_test

EVALUATION_SHARE = 0.1
HELD_OUT_SHARE = 0.05
PARTS = 20
"""Of each document, where there are too few documents to divide: one part is what is held out, two are what is evaluated."""
LEAST_CHARACTERS = 50
"""Of a part: shorter texts are not cut."""
_BOUNDARIES = (re.compile(r"\n[ \t\r]*\n"), re.compile(r"\n"), re.compile(r"\s"))
"""Where a document is cut, best first: between paragraphs, lines, words."""


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


def load_text(
    data: str,
    eval_data: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reading: Reading | None = None,
) -> TextData:
    """Documents of ``data`` by use, as the names of its files or splits say (docs/data.md).

    The train split is trained on; ``eval_data``, else the test split, else validation is the evaluation text; validation is
    held out where it is not evaluated on. Without splits the last 10 % of the documents are the evaluation text. A document
    that stands in both is taken out of the training text. Too few documents to divide (a book in one file) are cut into
    `PARTS` parts each, between paragraphs where there are some. Raises `DataError` for a missing file, an unknown format,
    a value that is no text, or too little text.

    Args:
        data: ``builtin``, a file, a folder, or a data set of the hub.
        eval_data: other data to evaluate on.
        tokenizer: writes rows of chat messages by its template; without it they are refused.
        reading: is told what was read and skipped.
    """
    reading = reading or Reading()
    if data == "builtin":
        training, held_out = builtin.training_documents(), builtin.held_out_documents()
        return _disjoint(data, training, held_out, _evaluation(eval_data or data, tokenizer, reading), reading)
    place, note = Place(data, tokenizer, reading), ""
    uses = by_use(place.parts, reading, given=eval_data is not None)
    found = place.documents(uses.trained_on(data, place.parts), "training" if uses.divided else "")
    note_test(place.parts, reading)
    held_out = place.documents(uses.held_out, "held out")
    if eval_data is not None:
        evaluation = _evaluation(eval_data, tokenizer, reading)
    else:
        evaluation = place.documents(uses.evaluation, "evaluated")
    _some(data, found, reading)
    training = found
    if evaluation and not held_out and len(found) < 2:  # a part of what is evaluated would not be known again
        training, note = _divisible(_without(data, found, set(evaluation)), 2)
    if not evaluation:
        training, note = _divisible(found, 2 if held_out else 3)
        training, evaluation = _cut(training, EVALUATION_SHARE)
    if not held_out:
        training, held_out = _cut(training, HELD_OUT_SHARE)
    if not training or not evaluation:
        least = 2 if eval_data or uses.evaluation or uses.held_out else 3
        raise DataError(
            f"{data} has {len(found)} documents; at least {least} are needed to train, hold out and evaluate (documents end "
            f"with <|endoftext|> or an empty line), or long ones ({PARTS * LEAST_CHARACTERS} characters), which are cut"
        )
    return _disjoint(data, training, held_out, evaluation, reading, f"{data} {note}" if note else "")


def _cut(documents: list[str], share: float) -> tuple[list[str], list[str]]:
    """All but the last ``share`` of ``documents``, at least one, and those."""
    place = max(0, len(documents) - max(1, round(len(documents) * share)))
    return documents[:place], documents[place:]


def _some(source: str, found: list[str], reading: Reading) -> None:
    if not found:
        raise DataError(f"{shown(source)} holds no text{reading.but_skipped()}")


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


def _disjoint(
    data: str, training: list[str], held_out: list[str], evaluation: list[str], reading: Reading, note: str = ""
) -> TextData:
    held_out = _without(data, held_out, set(evaluation))
    left = _without(data, training, {*evaluation, *held_out})
    if (removed := len(training) - len(left)) and data != "builtin":
        documents = "document is" if removed == 1 else "documents are"
        reading.note(f"{removed:,} training {documents} not trained on: the evaluation or held-out text has the same")
    return TextData(left, held_out, evaluation, note)


def _evaluation(source: str, tokenizer: PreTrainedTokenizerBase | None, reading: Reading) -> list[str]:
    if source == "builtin":
        return builtin.evaluation_documents()
    place = Place(source, tokenizer, reading)
    found = place.documents(evaluated(place.parts, reading), "evaluated")
    _some(source, found, reading)
    return found


def evaluation_text(
    data: str,
    eval_data: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reading: Reading | None = None,
) -> list[str]:
    """Only the evaluation part of `load_text`, without need of training text; arguments as there."""
    reading = reading or Reading()
    if eval_data or data == "builtin":
        return _evaluation(eval_data or data, tokenizer, reading)
    place = Place(data, tokenizer, reading)
    uses = by_use(place.parts, reading)
    if uses.evaluation:
        found = place.documents(uses.evaluation, "evaluated")
        _some(data, found, reading)
        return found
    found = place.documents(uses.trained_on(data, place.parts), "")
    _some(data, found, reading)
    return _cut(_divisible(found, 2 if uses.held_out else 3)[0], EVALUATION_SHARE)[1]


def documents(
    source: str, tokenizer: PreTrainedTokenizerBase | None = None, reading: Reading | None = None
) -> list[str]:
    """All documents of ``source`` that may be trained on: ``builtin``, a file, a folder (its train split, if it has splits), or
    a hub data set.

    A hub data set is named as on the hub, with its configuration after a colon and its split, if not that for training, after
    an at sign: ``Salesforce/wikitext:wikitext-2-raw-v1@test``.
    """
    if source == "builtin":
        return builtin.training_documents()
    reading = reading or Reading()
    place = Place(source, tokenizer, reading, split="train")
    found = place.documents(by_use(place.parts, reading, given=True).trained_on(source, place.parts), "")
    _some(source, found, reading)
    return found


class Place:
    """Where documents lie: files, or splits of a data set of the hub, by split (``parts``)."""

    def __init__(
        self, source: str, tokenizer: PreTrainedTokenizerBase | None, reading: Reading, split: str | None = None
    ) -> None:
        """``split`` is asked of the hub where the source names none; None: all."""
        self.source, self.tokenizer, self.reading = source, tokenizer, reading
        self.tables: Mapping[str, Any] = {}
        self.parts: Mapping[str | None, Sequence[Found | str]]
        kind, path = kind_of(source), Path(source)
        if kind == "folder":
            self.parts = files_in(path, TEXTS, reading)
        elif kind == "file":
            self.parts = {None: [Found(path, shown(source))]}
        elif source.startswith((".", "/", "~")) or ending_of(source) in {*TABLES, ".txt"}:
            raise DataError(
                f"{shown(source)} does not exist; give a file, a folder, 'builtin', or the name of a hub data set"
            )
        else:
            name, _, asked = source.partition("@")
            one = asked or split
            self.tables = {one: from_hub(name, "file", one)} if one else from_hub(name, "file")
            self.parts = {None: [one]} if one else by_split(list(self.tables), source, f"; name one, as {source}@NAME")

    def documents(self, items: Sequence[Found | str], use: str) -> list[str]:
        """Those of some of its ``parts``, which are told as read for ``use``."""
        found: list[str] = []
        for item in items:
            if isinstance(item, Found):
                some = documents_of(item.path, self.reading, self.tokenizer)
                self.reading.add(item, len(some), use)
            else:
                where = f"{self.source.partition('@')[0]}, split {item}"
                some = texts_of(Table(where, self.tables[item]), self.reading, self.tokenizer)
                self.reading.add(where, len(some), use, "split")
            found += some
        return found
