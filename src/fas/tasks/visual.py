"""Images with questions and answers, or with captions, from where a user has them: a folder, or a table beside its images."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.tasks.glue import CAPTIONING
from fas.tasks.labelled import json_rows
from fas.tasks.text import EVALUATION_SHARE, HELD_OUT_SHARE

MOST_HELD_OUT = 2000

_TABLES = (".json", ".jsonl", ".csv", ".tsv")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_EVALUATION = ("validation", "valid", "val", "dev", "test")
_IMAGE = ("image", "file_name", "image_path", "path", "image_id")
_QUESTION, _ANSWER = ("question", "query", "prompt"), ("answer", "answers", "label")
_CAPTION = ("caption", "captions", "text")


@dataclass(frozen=True)
class Seen:
    """An image, what is asked about it ("" for a caption), and the answer."""

    image: Path
    question: str
    answer: str


@dataclass(frozen=True)
class VisualData:
    """Examples by use. No image of the training part stands in another."""

    training: list[Seen]
    held_out: list[Seen]
    """Neither trained nor evaluated on: decides which of ANN and control is better."""
    evaluation: list[Seen]


def load_visual(task: str, data: str, eval_data: str | None = None) -> VisualData:
    """``data``, a folder or a table, by use.

    A folder has ``train`` and ``test`` (or ``val``, ``dev``, …), each a folder or a table; a folder of one part has a table,
    and its images lie beside it or in ``images``. Tables (.json, .jsonl, .csv, .tsv) have a column of images and ``question``
    and ``answer``, or ``caption``; easy-VQA's lists ``[question, answer, image]`` are read, too. Without ``eval_data`` and a
    part for it, a tenth of the images is drawn for evaluation. Raises `DataError` for what is missing or cannot be read.
    """
    training, evaluation = _sides(task, Path(data), eval_data)
    if not evaluation:
        training, evaluation = _by_image(training, EVALUATION_SHARE)
    seen = {row.image.resolve() for row in evaluation}
    kept = [row for row in training if row.image.resolve() not in seen]
    rest, held_out = _by_image(kept, HELD_OUT_SHARE)
    if not rest or not held_out or not evaluation:
        raise DataError(
            f"{data} leaves {len(rest)} rows to train on, {len(held_out)} held out and {len(evaluation)} to evaluate on; give "
            "more images, or other --eval-data"
        )
    return VisualData(rest, held_out[:MOST_HELD_OUT], evaluation)


def evaluation_seen(task: str, data: str, eval_data: str | None = None) -> list[Seen]:
    """Only what `load_visual` evaluates on."""
    training, evaluation = _sides(task, Path(data), eval_data)
    return evaluation or _by_image(training, EVALUATION_SHARE)[1]


def _sides(task: str, place: Path, eval_data: str | None) -> tuple[list[Seen], list[Seen]]:
    if not place.exists():
        raise DataError(f"{place} does not exist; give a folder with images and a table, or the table")
    other = [] if eval_data is None else read_part(task, Path(eval_data))
    parts = _parts(place) if place.is_dir() else {}
    if "train" not in parts:
        return read_part(task, place), other
    found = next((parts[name] for name in _EVALUATION if name in parts), None) if eval_data is None else None
    return read_part(task, parts["train"]), other if found is None else read_part(task, found)


def _parts(folder: Path) -> dict[str, Path]:
    """Sub-folders and tables of ``folder`` by the part that their name says."""
    entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() or entry.suffix in _TABLES)
    return {name: entry for name in ("train", *_EVALUATION) for entry in entries if entry.stem.lower().startswith(name)}


def read_part(task: str, place: Path) -> list[Seen]:
    """The rows of one table, or of the only table of a folder. Raises `DataError` if it cannot be read."""
    if place.is_dir():
        tables = sorted(file for file in place.iterdir() if file.suffix in _TABLES)
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
        image, question, answer = (_value(row, names) for names in (_IMAGE, _QUESTION, _ANSWER))
        if task == CAPTIONING:
            question, answer = "", _value(row, _CAPTION)
        if image is None or question is None or answer is None:
            wanted = "caption" if task == CAPTIONING else "question and answer"
            raise DataError(
                f"{place}: row {number + 1} has {', '.join(map(str, row))}; {task} looks for image (or image_id), {wanted}"
            )
        found.append(Seen(_find(place.parent, image, f"{place}: row {number + 1}"), question, answer))
    return found


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


def _value(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    value = next((row[name] for name in names if row.get(name) not in (None, "", [])), None)
    if isinstance(value, list):
        value = value[0]
    return None if value is None else str(value).strip()


def _find(folder: Path, image: str, where: str) -> Path:
    for place in (folder / image, folder / "images" / image):
        for path in (place, *(place.with_name(place.name + ending) for ending in _IMAGES)):
            if path.is_file():
                return path
    raise DataError(f"{where} names the image {image}, which is neither in {folder} nor in its folder images")


def _by_image(rows: list[Seen], share: float) -> tuple[list[Seen], list[Seen]]:
    """All but a ``share`` of the images with their rows, and those, drawn at random."""
    images = sorted({row.image for row in rows})
    drawn = set(random.Random(0).sample(images, min(len(images), max(1, round(len(images) * share)))))
    return [row for row in rows if row.image not in drawn], [row for row in rows if row.image in drawn]
