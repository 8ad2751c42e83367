"""Labels of one kind: names, whole numbers, numbers, or true and false; all else is refused by row."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fas.errors import DataError
from fas.tasks.reading.tables import Place, Table, short, whole

LARGEST = 1e18
"""Of a score: the square of a larger error is not finite in fp32."""
_WHOLE, _NUMBER = re.compile(r"[+-]?[0-9]+"), re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DIGITS = 18
_MOST = 10**_DIGITS
"""A whole number from here on is no class but something else, such as an identifier."""
WORD, WHOLE, NUMBER, TRUTH = "a word", "a whole number", "a number with a point", "true or false"


def kind_of_label(value: Any) -> str | None:
    """The kind of a label, which text of a delimited file has, too; None: it is no label.

    >>> kind_of_label("spam") == WORD, kind_of_label("3") == kind_of_label(3) == WHOLE, kind_of_label([1])
    (True, True, None)
    """
    if isinstance(value, bool):
        return TRUTH
    if isinstance(value, int):
        return WHOLE if abs(value) < _MOST else None
    if isinstance(value, float):
        return NUMBER if math.isfinite(value) else None
    if not isinstance(value, str) or value.strip().lower() in ("", "nan"):
        return None
    text = value.strip()
    if text.lower() in ("true", "false"):
        return TRUTH
    if _WHOLE.fullmatch(text):
        return WHOLE if len(text) <= _DIGITS else None
    return NUMBER if _NUMBER.fullmatch(text) else WORD


def score_of(value: Any) -> float | None:
    """``value`` as a score; None if it is none that a regression can learn: finite, and at most `LARGEST`."""
    kind = kind_of_label(value)
    if kind not in (WHOLE, NUMBER):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if abs(found) <= LARGEST else None


def all_characters(labels: Iterable[Any]) -> bool:
    """Whether all are texts of one character: digits are words among letters."""
    return all(isinstance(label, str) and len(label.strip()) == 1 for label in labels)


def check_classes(table: Table, place: Place, named: Sequence[str] = (), alike: bool = False) -> None:
    """Raise `DataError` by row unless all labels in a column are words, or whole numbers, or true and false.

    Args:
        table: whose rows all have ``place``.
        place: the column.
        named: texts that are names of classes, whatever they look like.
        alike: all texts are words, also those that look like numbers; else only those of one character are.
    """
    alike = alike or all_characters(row[place] for row in table.rows)
    first: tuple[str, Any] | None = None
    for number, row in enumerate(table.rows):
        value = row[place]
        kind = kind_of_label(value)
        if kind is not None and isinstance(value, str):
            kind = WORD if alike or value.strip() in named else kind
            whole(value, lambda number=number: f"{table.at(number)}: its label")
        if kind is None:
            raise DataError(f"{table.at(number)}: {short(value)} in {place!r} is no label; mend or remove the row")
        if kind == NUMBER and not float(value).is_integer():
            raise DataError(
                f"{table.at(number)}: the label {short(value)} has a fraction; classes are words or whole numbers, and scores "
                "are for --task text-regression"
            )
        if isinstance(value, str) and kind != WORD:
            kind += " as text"
        first = first or (kind, value)
        if kind != first[0]:
            raise DataError(
                f"{table.at(number)}: the label {short(value)} is {kind} and that of row 1, {short(first[1])}, is {first[0]}; "
                "write all labels in one way"
            )


def check_scores(table: Table, place: Place) -> None:
    """Raise `DataError` by row unless each label in column ``place`` is a score (`score_of`)."""
    for number, row in enumerate(table.rows):
        if score_of(row[place]) is None:
            raise DataError(
                f"{table.at(number)}: {short(row[place])} in {place!r} is no score; a regression needs finite numbers, at most "
                f"{LARGEST:g}"
            )
