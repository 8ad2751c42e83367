"""Rows of tables, whatever their form, with one set of rules: what does not fit is refused by file and row."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.tasks.reading.contents import checked, text_of, told_if_large
from fas.tasks.reading.journal import Reading
from fas.tasks.reading.names import PACKED, shown

Place = str | int
"""A column by name, or by number in a file without header."""
Row = Mapping[Any, Any]
_LONGEST_FIELD = 1 << 31
_FIELDS = threading.Lock()
"""The length of a field is a setting of the whole process; it is put back."""
_SHOWN_COLUMNS, _SHOWN_VALUE = 12, 40


@dataclass(frozen=True)
class Table:
    """Rows of one file, or of one split of a data set, and what errors call them."""

    source: str
    rows: Sequence[Row]
    lines: Sequence[int] = ()
    """Where each row ends, in a text file."""

    @property
    def named(self) -> bool:
        """Whether its columns have names; else their keys are numbers from 0."""
        return not self.rows or isinstance(next(iter(self.rows[0]), ""), str)

    @property
    def columns(self) -> str:
        """For an error: the names of its columns, or what the first row holds."""
        first = list(self.rows[0].items()) if self.rows else []
        told = [shown(name) if self.named else short(value) for name, value in first[:_SHOWN_COLUMNS]]
        return ", ".join(told) + (f" and {len(first) - len(told)} more" if len(first) > len(told) else "")

    def only(self, places: Sequence[Place]) -> Table:
        """The same with these columns alone, as plain values: a stored table would decode all others row by row."""
        if not hasattr(self.rows, "select_columns"):
            return self
        rows: Any = self.rows
        return Table(self.source, rows.select_columns(list(places)).with_format(None).to_list())

    def at(self, number: int) -> str:
        """The row of that index, for an error."""
        line = f" (line {self.lines[number]})" if self.lines else ""
        return f"{self.source}: row {number + 1}{line}"


def short(value: object) -> str:
    """``value`` as a message shows it.

    >>> short("a" * 50), short({"a": None})
    ("'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…", "{'a': None}")
    """
    found = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return found if len(found) <= _SHOWN_VALUE else found[: _SHOWN_VALUE - 1] + "…"


def text_at(table: Table, number: int, place: Place) -> str:
    """The text in column ``place`` of a row; raises `DataError` if there is none, or something else than text."""
    row = table.rows[number]
    if place not in row or row[place] is None:
        raise DataError(f"{table.at(number)} has nothing in column {place!r}; mend or remove it")
    value = row[place]
    if not isinstance(value, str):
        kind = {list: "a list", dict: "an object", bool: "true or false"}.get(type(value), type(value).__name__)
        raise DataError(f"{table.at(number)}: {place!r} is {kind} ({short(value)}) and no text; write texts there")
    return whole(value, lambda: f"{table.at(number)}: {place!r}")


def whole(text: str, where: Callable[[], str]) -> str:
    """``text``; raises `DataError` for half of a surrogate pair, which no tokenizer takes."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where()} holds half of a surrogate pair ({text[error.start]!a}), which is no character; mend it"
            ) from None
    return text


def read_table(
    path: Path,
    form: str,
    is_header: Callable[[Sequence[str]], bool],
    reading: Reading,
    listed: Sequence[str] = (),
) -> Table:
    """The rows of one file. Raises `DataError`, by row where it is one, for what cannot be read.

    Args:
        path: the file.
        form: ``json`` (a list, or lines), ``csv``, ``tsv``, ``parquet`` or ``arrow``.
        is_header: whether the first line of a delimited file names its columns; without a header they are numbered, and rows
            may differ in length (`even`).
        reading: is told of a large file before it is read.
        listed: names of the entries of JSON rows that are lists.
    """
    if form in ("parquet", "arrow"):
        return Table(shown(path), stored(path, form, reading))
    text = text_of(path, reading)
    return _json(path, text, listed) if form == "json" else _delimited(path, text, form, is_header)


def stored(path: Path, form: str, reading: Reading) -> Any:
    """The `datasets.Dataset` in a Parquet or Arrow file, with the kinds of columns that it was written with."""
    if path.suffix.lower() in PACKED:
        raise DataError(f"{shown(path)} is called a compressed {form} table; unpack it, {form} compresses by itself")
    told_if_large(path, checked(path), reading)
    from datasets import Dataset
    from pyarrow import parquet

    try:
        with path.open("rb") as file:
            found = parquet.read_table(file) if form == "parquet" else _arrow(file)
        found.validate(full=True)  # else broken text is met row by row
        return Dataset(found)
    except Exception as error:  # readers raise many unrelated types on broken files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{shown(path)} cannot be read as {path.suffix}: {shown(reason)[:200]}") from None


def _arrow(file: Any) -> Any:
    """The table of an Arrow file in either of its two formats."""
    from pyarrow import ArrowInvalid, ipc

    try:
        return ipc.open_stream(file).read_all()
    except ArrowInvalid:
        file.seek(0)
        return ipc.open_file(file).read_all()


def even(table: Table, least: int | None = None) -> None:
    """Raise `DataError` by row unless all rows have as many columns as the first, or at least ``least``."""
    wanted = len(table.rows[0]) if table.rows else 0
    for number, row in enumerate(table.rows):
        if len(row) < least if least is not None else len(row) != wanted:
            raise _ragged(table.at(number), len(row), wanted, "its first row has")


def _ragged(where: str, found: int, wanted: int, who: str) -> DataError:
    fields = "1 field" if found == 1 else f"{found} fields"
    return DataError(f"{where} has {fields} and {who} {wanted}; quote what holds the delimiter, or mend the row")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{short(double)} stands twice in one object")
    return found


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique)


def _json(path: Path, text: str, listed: Sequence[str]) -> Table:
    """The rows of a JSON list or of JSON lines."""
    source, lines = shown(path), []
    if text.lstrip().startswith("["):
        try:
            found = _parsed(text)
        except (ValueError, RecursionError) as error:
            raise _no_json(path, "", error) from None
    else:
        found = []
        for number, line in enumerate(text.split("\n"), 1):  # other ends of a line may stand in texts
            if line.strip():
                try:
                    found.append(_parsed(line))
                except (ValueError, RecursionError) as error:
                    raise _one_object(path, text) or _no_json(path, f"line {number}: ", error) from None
                lines.append(number)
    if listed and found and all(isinstance(row, list) and len(row) == len(listed) for row in found):
        found = [dict(zip(listed, row, strict=True)) for row in found]
    table = Table(source, found, lines)
    if wrong := next((number for number, row in enumerate(found) if not isinstance(row, dict)), None):
        raise DataError(f"{table.at(wrong)} is no row with named columns, but {short(found[wrong])}")
    if found and not isinstance(found[0], dict):
        raise DataError(f"{source} is no list of rows with named columns; its first entry is {short(found[0])}")
    return table


def _one_object(path: Path, text: str) -> DataError | None:
    """What is wrong with JSON that is one object over several lines."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    names = ", ".join(map(shown, list(found)[:_SHOWN_COLUMNS])) if isinstance(found, dict) else short(found)
    return DataError(f"{shown(path)} holds one object ({names}) and no rows; write a list of rows, or JSON lines")


def _no_json(path: Path, where: str, error: Exception) -> DataError:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else shown(error)[:200]
    return DataError(f"{shown(path)} cannot be read as {path.suffix or 'JSON'}: {where}{reason}")


def _delimited(path: Path, text: str, form: str, is_header: Callable[[Sequence[str]], bool]) -> Table:
    source, delimiter = shown(path), "," if form == "csv" else "\t"
    first = text.split("\n", 1)[0].rstrip("\r")
    # quotation marks of a tab-separated file are part of its text, and often unbalanced, unless its header has them, too
    quoted = delimiter == "," or all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in first.split("\t"))
    lines, numbers = _fields(source, text, delimiter, csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    if not lines:
        raise DataError(f"{source} holds no rows")
    head = [name.strip() for name in lines[0]]
    if not is_header(head):
        return Table(source, [dict(enumerate(line)) for line in lines], numbers)
    if double := next((name for name in head if head.count(name) > 1), None):
        raise DataError(f"{source} has two columns called {double!r}; rename one")
    rows, numbers = lines[1:], numbers[1:]
    wanted = len(head)
    for number, line in enumerate(rows):
        if len(line) != wanted:
            raise _ragged(f"{source}: row {number + 1} (line {numbers[number]})", len(line), wanted, "its header has")
    return Table(source, [dict(zip(head, line, strict=True)) for line in rows], numbers)


def _fields(source: str, text: str, delimiter: str, quoting: int) -> tuple[list[list[str]], list[int]]:
    """All lines that are not empty as their fields, and where each ends."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    lines, numbers = [], []
    with _FIELDS:
        before = csv.field_size_limit(_LONGEST_FIELD)
        try:
            for line in reader:
                if line:
                    lines.append(line)
                    numbers.append(reader.line_num)
        except csv.Error as error:
            raise DataError(f"{source} cannot be read: line {reader.line_num}: {error}") from None
        finally:
            csv.field_size_limit(before)
    return lines, numbers
