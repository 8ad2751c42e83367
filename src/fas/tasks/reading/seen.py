"""Images with questions and answers, captions or classes: rows of a table, or images in a folder a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.tasks.glue import CAPTIONING, CLASSIFIED
from fas.tasks.hub_images import has_images, rows_with_images
from fas.tasks.pictures import Picture
from fas.tasks.reading.contents import kind_of, refuse_archive
from fas.tasks.reading.journal import Reading
from fas.tasks.reading.labels import check_classes
from fas.tasks.reading.names import TABLES, form_of, set_aside, shown, why_unread
from fas.tasks.reading.tables import Table, read_table, short, whole

IMAGE = ("image", "img", "file_name", "image_path", "path", "image_id")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_QUESTION, _ANSWER = ("question", "query", "prompt"), ("multiple_choice_answer", "answer", "answers", "label")
_CAPTION = ("caption", "captions", "text", "sentences", "sentence")
_CLASS = ("label", "labels", "class", "target", "fine_label")
_COLUMNS = {CAPTIONING: _CAPTION} | dict.fromkeys(CLASSIFIED, _CLASS)
_WANTED = {CAPTIONING: "caption"} | dict.fromkeys(CLASSIFIED, "label")
_EMPTY: tuple[Any, ...] = (None, "", [])


@dataclass(frozen=True)
class Seen:
    """An image, what is asked about it ("" for a caption or a class), and the answer, caption or name of the class."""

    image: Picture
    question: str
    answer: str
    references: tuple[str, ...] = ()
    """All answers that people gave, or captions; () where there is one."""


def is_table(name: str) -> bool:
    """Whether a file called ``name`` may be a table of images."""
    return form_of(name, TABLES) is not None and not set_aside(name)


def entries_of(folder: Path, reading: Reading) -> list[Path]:
    """What lies in ``folder`` and may be data, in order; the rest is told as skipped."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be read: {error.strerror}") from None
    for entry in found:
        if reason := set_aside(entry.name):
            reading.skip(entry, reason)
    return [entry for entry in found if not set_aside(entry.name)]


def seen_in(task: str, place: Path, reading: Reading, use: str = "") -> list[Seen]:
    """The rows of one table, of the only table of a folder, or of its folders of classes; told as read for ``use``.

    Raises `DataError`, by row where it is one, for what cannot be read.
    """
    if kind_of(place) == "folder":
        entries = entries_of(place, reading)
        tables = [entry for entry in entries if is_table(entry.name) and kind_of(entry) == "file"]
        if not tables and task in CLASSIFIED:
            return _classes(place, entries, reading, use)
        if len(tables) != 1:
            names = ", ".join(shown(table.name) for table in tables) or "none"
            raise DataError(f"{shown(place)} needs one table ({', '.join(TABLES)}) beside its images, and has {names}")
        _skip_others(entries, reading)
        place = tables[0]
    refuse_archive(place)
    form = form_of(place.name, TABLES)
    if kind_of(place) is None or form is None:
        raise DataError(f"{shown(place)} is no table that FAS reads ({', '.join(TABLES)})")
    table = read_table(place, form, lambda head: any(name in IMAGE for name in head), reading, _EASY_VQA)
    if not len(table.rows):
        raise DataError(f"{shown(place)} holds no rows")
    if form in ("parquet", "arrow") and has_images(table.rows, IMAGE):
        found = seen_of(task, shown(place), table.rows)
    else:
        found = _of_table(task, table, place.parent)
    reading.add(place, len(found), use)
    return found


_EASY_VQA = ("question", "answer", "image")
"""Entries of easy-VQA's rows."""


def _of_table(task: str, table: Table, folder: Path) -> list[Seen]:
    if not table.named:
        raise DataError(
            f"{table.source} begins with {table.columns}; {task} looks for image (or image_id) in a first line"
        )
    _check_labels(task, table)
    found = []
    for number, row in enumerate(table.rows):
        where, image = table.at(number), _texts(row, IMAGE, table.at(number))
        if not image:
            raise DataError(f"{where} has {', '.join(map(shown, row))}; {task} looks for image (or image_id)")
        seen = _seen(task, row, where, Path(image[0]))
        found.append(replace(seen, image=_find(folder, image[0], where)))
    return found


def seen_of(task: str, source: str, table: Any) -> list[Seen]:
    """The rows of a `datasets.Dataset` that holds images. Raises `DataError` where it does not, or lacks a column."""
    rows = rows_with_images(source, table, IMAGE)
    _check_labels(task, Table(source, [row for _, row in rows]))
    return [_seen(task, row, f"{source}, row {number + 1}", image) for number, (image, row) in enumerate(rows)]


def is_unlabelled(task: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether no row has an answer, caption or class, as test splits of contests have none."""
    names = _COLUMNS.get(task, _ANSWER)
    return all(row.get(name) in (*_EMPTY, -1, "-1") for row in rows for name in names)


def _check_labels(task: str, table: Table) -> None:
    """Raise `DataError` for labels of classes that are none, or of several kinds."""
    if task not in CLASSIFIED or not table.rows:
        return
    column = next((name for name in _CLASS if table.rows[0].get(name) not in _EMPTY), None)
    if column is not None and all(row.get(column) not in _EMPTY for row in table.rows):
        check_classes(table, column, alike=True)


def _classes(folder: Path, entries: list[Path], reading: Reading, use: str) -> list[Seen]:
    """Images in a folder a class."""
    found = []
    for group in entries:
        if kind_of(group) != "folder":
            reading.skip(group, "lies beside the folders of classes")
            continue
        images = []
        for entry in entries_of(group, reading):
            if kind_of(entry) == "folder":
                reading.skip(entry, "a folder inside of a class")
            elif entry.suffix.lower() not in _IMAGES:
                reading.skip(entry, why_unread(entry.name))
            else:
                images.append(Seen(entry, "", whole(group.name, lambda group=group: shown(group))))
        if images:
            reading.add(group, len(images), use, "folder")
        else:
            reading.skip(group, "no images")
        found += images
    if not found:
        raise DataError(
            f"{shown(folder)} has neither a table ({', '.join(TABLES)}) nor folders with images, one a class"
            f"{reading.but_skipped()}"
        )
    return found


def _skip_others(entries: list[Path], reading: Reading) -> None:
    """Tell of files beside a table that are no images."""
    for entry in entries:
        if kind_of(entry) == "file" and not is_table(entry.name) and entry.suffix.lower() not in _IMAGES:
            reading.skip(entry, why_unread(entry.name))


def _seen(task: str, row: Mapping[str, Any], where: str, image: Picture) -> Seen:
    """One row; raises `DataError` where it lacks a column of the task. Of several answers the commonest is the answer."""
    question = [""] if task in _COLUMNS else _texts(row, _QUESTION, where)
    answers = _texts(row, _COLUMNS.get(task, _ANSWER), where)
    if not question or not answers:
        raise DataError(
            f"{where} has {', '.join(map(shown, row))}; {task} looks for {_WANTED.get(task, 'question and answer')}"
        )
    several = tuple(_texts(row, ("answers",), where)) if task not in _COLUMNS else tuple(answers)
    answer = Counter(answers).most_common(1)[0][0]
    return Seen(image, question[0], answer, several if len(several) > 1 else ())


def _texts(row: Mapping[str, Any], names: Sequence[str], where: str) -> list[str]:
    """What stands in the first of the columns ``names`` that ``row`` has: a text, several, or several answers with notes."""
    name = next((name for name in names if not _is_empty(row.get(name))), None)
    if name is None:
        return []
    values = row[name] if isinstance(row[name], list) else [row[name]]
    found = []
    for value in values:
        one = value["answer"] if isinstance(value, dict) and "answer" in value else value
        if isinstance(one, bool) or not isinstance(one, str | int):
            raise DataError(f"{where}: {short(one)} in {name!r} is no text; write texts there")
        found.append(whole(str(one).strip(), lambda: f"{where}: {name!r}"))
    return found


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list) and not value)


def _find(folder: Path, image: str, where: str) -> Path:
    for place in (folder / image, folder / "images" / image):
        for path in (place, *(place.parent / (place.name + ending) for ending in _IMAGES)):
            if kind_of(path) == "file":
                return path
    raise DataError(
        f"{where} names the image {shown(image)}, which is neither in {shown(folder)} nor in its folder images"
    )
