"""Images with questions and answers, captions or classes, from where a user has them: a folder, a table beside its images, or a
data set of the hub."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.tasks.glue import CAPTIONING, CLASSIFIED
from fas.tasks.hub_images import EVALUATION, hub_rows
from fas.tasks.labelled import json_rows
from fas.tasks.pictures import Picture, identity
from fas.tasks.text import EVALUATION_SHARE, HELD_OUT_SHARE

MOST_HELD_OUT = 2000

_TABLES = (".json", ".jsonl", ".csv", ".tsv")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_IMAGE = ("image", "img", "file_name", "image_path", "path", "image_id")
_QUESTION, _ANSWER = ("question", "query", "prompt"), ("multiple_choice_answer", "answer", "answers", "label")
_CAPTION = ("caption", "captions", "text", "sentences", "sentence")
_CLASS = ("label", "labels", "class", "target", "fine_label")


@dataclass(frozen=True)
class Seen:
    """An image, what is asked about it ("" for a caption or a class), and the answer, caption or name of the class."""

    image: Picture
    question: str
    answer: str
    references: tuple[str, ...] = ()
    """All answers that people gave, or captions; () where there is one."""


@dataclass(frozen=True)
class VisualData:
    """Examples by use. No image of the training part stands in another."""

    training: list[Seen]
    held_out: list[Seen]
    """Neither trained nor evaluated on: decides which of ANN and control is better."""
    evaluation: list[Seen]


def load_visual(task: str, data: str, eval_data: str | None = None) -> VisualData:
    """``data``, a folder, a table or a data set of the hub, by use.

    A folder has ``train`` and ``test`` (or ``val``, ``dev``, …), each a folder or a table; a folder of one part has a table,
    and its images lie beside it or in ``images``. Tables (.json, .jsonl, .csv, .tsv) have a column of images, and ``question``
    and ``answer`` (or ``answers``), ``caption`` or ``label``; images may also lie in folders, one a class; easy-VQA's lists
    ``[question, answer, image]`` are read, too. Without ``eval_data`` and a part for it, a tenth of the images is drawn for
    evaluation. Raises `DataError` for what is missing or cannot be read.
    """
    training, evaluation = _sides(task, data, eval_data)
    if not evaluation:
        training, evaluation = _by_image(training, EVALUATION_SHARE)
    seen = {identity(row.image) for row in evaluation}
    kept = [row for row in training if identity(row.image) not in seen]
    rest, held_out = _by_image(kept, HELD_OUT_SHARE)
    if not rest or not held_out or not evaluation:
        raise DataError(
            f"{data} leaves {len(rest)} rows to train on, {len(held_out)} held out and {len(evaluation)} to evaluate on; give "
            "more images, or other --eval-data"
        )
    return VisualData(rest, held_out[:MOST_HELD_OUT], evaluation)


def evaluation_seen(task: str, data: str, eval_data: str | None = None) -> list[Seen]:
    """Only what `load_visual` evaluates on."""
    training, evaluation = _sides(task, data, eval_data)
    return evaluation or _by_image(training, EVALUATION_SHARE)[1]


def _sides(task: str, data: str, eval_data: str | None) -> tuple[list[Seen], list[Seen]]:
    """Training and evaluation; the second may be empty."""
    place, other = Path(data), [] if eval_data is None else read_part(task, Path(eval_data))
    if not place.exists() and (data.startswith((".", "/", "~")) or place.suffix in _TABLES):
        raise DataError(f"{place} does not exist; give a folder with images and a table, the table, or a hub data set")
    if place.exists():
        parts = _parts(task, place) if place.is_dir() else {}
        readers = {name: lambda part=part: read_part(task, part) for name, part in parts.items()}
        if "train" not in readers:
            return read_part(task, place), other
    else:
        splits = hub_rows(data, _IMAGE)
        readers = {
            name: lambda rows=rows, name=name: _of_hub(task, rows, f"{data}, {name}") for name, rows in splits.items()
        }
        if "train" not in readers:
            raise DataError(f"{data} has no split called train, but {', '.join(readers)}")
    found = next((readers[name] for name in EVALUATION if name in readers), None) if eval_data is None else None
    return readers["train"](), other if found is None else found()


def _parts(task: str, folder: Path) -> dict[str, Path]:
    """Sub-folders and tables of ``folder`` by the part that their name says; a folder of images is a class, not a part."""
    entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() or entry.suffix in _TABLES)
    if task in CLASSIFIED:
        entries = [e for e in entries if not e.is_dir() or any(x.is_dir() or x.suffix in _TABLES for x in e.iterdir())]
    return {name: entry for name in ("train", *EVALUATION) for entry in entries if entry.stem.lower().startswith(name)}


def read_part(task: str, place: Path) -> list[Seen]:
    """The rows of one table, of the only table of a folder, or of its folders of classes. Raises `DataError` if it cannot be
    read."""
    if place.is_dir():
        tables = sorted(file for file in place.iterdir() if file.suffix in _TABLES)
        if not tables and task in CLASSIFIED:
            return _classes(place)
        if len(tables) != 1:
            names = ", ".join(table.name for table in tables) or "none"
            raise DataError(f"{place} needs one table ({', '.join(_TABLES)}) beside its images, and has {names}")
        place = tables[0]
    if not place.exists() or place.suffix not in _TABLES:
        raise DataError(f"{place} is no table that FAS reads ({', '.join(_TABLES)})")
    rows = list(_rows(place))
    if not rows:
        raise DataError(f"{place} holds no rows")
    found = []
    for number, row in enumerate(rows):
        where, image = f"{place}: row {number + 1}", _texts(row, _IMAGE)
        if not image:
            raise DataError(f"{where} has {', '.join(map(str, row))}; {task} looks for image (or image_id)")
        seen = _seen(task, row, where, Path(image[0]))
        found.append(replace(seen, image=_find(place.parent, image[0], where)))
    return found


def _classes(folder: Path) -> list[Seen]:
    """Images in a folder a class."""
    found = [
        Seen(image, "", group.name)
        for group in sorted(folder.iterdir())
        if group.is_dir()
        for image in sorted(group.iterdir())
        if image.suffix.lower() in _IMAGES
    ]
    if not found:
        raise DataError(f"{folder} has neither a table ({', '.join(_TABLES)}) nor folders with images, one a class")
    return found


def _of_hub(task: str, rows: Sequence[tuple[Picture, Mapping[str, Any]]], where: str) -> list[Seen]:
    return [_seen(task, row, f"{where}, row {number + 1}", image) for number, (image, row) in enumerate(rows)]


def _seen(task: str, row: Mapping[str, Any], where: str, image: Picture) -> Seen:
    """One row; raises `DataError` where it lacks a column of the task. Of several answers the commonest is the answer."""
    columns = {CAPTIONING: _CAPTION} | dict.fromkeys(CLASSIFIED, _CLASS)
    question = [""] if task in columns else _texts(row, _QUESTION)
    answers = _texts(row, columns.get(task, _ANSWER))
    if not question or not answers:
        wanted = {CAPTIONING: "caption"} | dict.fromkeys(CLASSIFIED, "label")
        raise DataError(
            f"{where} has {', '.join(map(str, row))}; {task} looks for {wanted.get(task, 'question and answer')}"
        )
    several = tuple(_texts(row, ("answers",))) if task not in columns else tuple(answers)
    answer = Counter(answers).most_common(1)[0][0]
    return Seen(image, question[0], answer, several if len(several) > 1 else ())


def _rows(file: Path) -> Iterable[Mapping[str, Any]]:
    if file.suffix in (".csv", ".tsv"):
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from csv.DictReader(lines, delimiter="," if file.suffix == ".csv" else "\t")
        return
    if file.suffix == ".json" and (listed := _easy_vqa(file)) is not None:
        yield from listed
        return
    yield from json_rows(file)  # type: ignore[misc]


def _easy_vqa(file: Path) -> list[dict[str, Any]] | None:
    """Rows of ``[question, answer, image number]``, as easy-VQA has them; None for another file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None
    if not isinstance(found, list) or not all(isinstance(row, list) and len(row) == 3 for row in found):
        return None
    return [dict(zip(("question", "answer", "image"), row, strict=True)) for row in found]


def _texts(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What stands in the first of the columns ``names`` that ``row`` has: a text, several, or several answers with notes."""
    value = next((row[name] for name in names if row.get(name) not in (None, "", [])), None)
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [str(one["answer"] if isinstance(one, dict) and "answer" in one else one).strip() for one in values]


def _find(folder: Path, image: str, where: str) -> Path:
    for place in (folder / image, folder / "images" / image):
        for path in (place, *(place.with_name(place.name + ending) for ending in _IMAGES)):
            if path.is_file():
                return path
    raise DataError(f"{where} names the image {image}, which is neither in {folder} nor in its folder images")


def _by_image(rows: list[Seen], share: float) -> tuple[list[Seen], list[Seen]]:
    """All but a ``share`` of the images with their rows, and those, drawn at random."""
    images = sorted({row.image for row in rows}, key=identity)
    drawn = set(random.Random(0).sample(images, min(len(images), max(1, round(len(images) * share)))))
    return [row for row in rows if row.image not in drawn], [row for row in rows if row.image in drawn]
