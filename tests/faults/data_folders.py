"""Folders as users have them: splits, clutter, links; images in classes or beside a table."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from data_files import (
    EITHER,
    FORBIDDEN,
    IMAGES,
    PACKERS,
    READ,
    REFUSED,
    TABLE_FORMS,
    Case,
    content_of,
    encoded,
    endings_of,
    plant,
    texts,
)  # fmt: skip
from PIL import Image

SPLITS = {
    "train": ("train", "training", "Train", "glue_train", "train-00000-of-00001", "wiki.train"),
    "validation": ("validation", "valid", "val", "dev", "eval", "x-dev", "wiki.valid"),
    "test": ("test", "TEST", "sts-test", "test-00000-of-00001", "wiki.test"),
}
CLUTTER = (
    "README.md", "README", "LICENSE", "LICENSE.txt", "SOURCE.txt", ".gitattributes", ".DS_Store", "._train.txt", ".git/HEAD",
    ".git/config", ".ipynb_checkpoints/train.txt", ".cache/huggingface/x.txt", "__MACOSX/train.txt", "train.txt.bak",
    "notes.txt~", "dataset_infos.json", "CITATION.bib", "COPYING", "figure.png", "paper.pdf", "train.zip", "Thumbs.db",
)  # fmt: skip


def folder_of(case: Case, rng: random.Random, folder: Path) -> None:
    """A folder with or without splits, clutter, links and what else lies in folders."""
    case.data = folder / rng.choice(("data", "my test data", "日本", "train"))
    case.data.mkdir()
    endings = endings_of(case.task)
    split = rng.random() < 0.6
    named = (
        {use: rng.choice(names) for use, names in SPLITS.items() if use == "train" or rng.random() < 0.7}
        if split
        else {str(i): f"part{i}" for i in range(rng.randint(1, 3))}
    )
    inside = rng.choice(("", "", "data/", "deep/er/"))
    as_folders = rng.random() < 0.2
    for use, stem in named.items():
        ending = rng.choice(endings)
        some = texts(rng, f"{use}{case.number}")
        packing = rng.choice(("", "", "", *PACKERS)) if ending != ".parquet" else ""
        content = content_of(case.task, some, ending)
        name = f"{inside}{stem}/a{ending}{packing}" if as_folders else f"{inside}{stem}{ending}{packing}"
        plant(case, name, some, PACKERS[packing](content) if packing else content, test=use == "test")
    case.damage = f"folder of {'splits' if split else 'files'}"
    if split and rng.random() < 0.15:
        gone = next(name for text, name in case.planted.items() if text.startswith("train"))
        (case.data / gone).unlink()
        case.files.discard(gone)
        case.damage, case.fate = "folder without train", REFUSED
    _clutter(case, rng)
    if rng.random() < 0.3:
        _links(case, rng)
    if case.fate == READ and split and rng.random() < 0.2:
        name = "a_train_and_test" + rng.choice(endings)
        (case.data / name).write_bytes(content_of(case.task, texts(rng, "both"), ".txt"))
        case.damage, case.fate = "two splits in a name", REFUSED


def _clutter(case: Case, rng: random.Random) -> None:
    for name in rng.sample(CLUTTER, rng.randint(0, 8)):
        path = case.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{FORBIDDEN}\n\n{FORBIDDEN} again\n")
        case.files.add(name)


def _links(case: Case, rng: random.Random) -> None:
    kind = rng.choice(("loop", "self", "broken", "fifo"))
    place = case.data / f"link-{kind}"
    if kind == "loop":
        place.symlink_to(case.data)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to(place if kind == "self" else case.data / "nowhere.txt")
    case.files.add(place.name)
    case.damage += f", {kind}"


# images


def images(case: Case, rng: random.Random, folder: Path) -> None:
    """Folders of classes, or a table beside its images, with one damage or none."""
    case.data = folder / "photos"
    parts = ("train", "test") if rng.random() < 0.5 else ("",)
    classes = case.task == IMAGES and rng.random() < 0.6
    for part in parts:
        place = case.data / part
        _classes(case, rng, place, part) if classes else _table(case, rng, place, part)
    case.damage = "images of classes" if classes else "images and a table"
    place = case.data / parts[0]
    if rng.random() < 0.6:
        (_damaged_classes if classes else _damaged_table)(case, rng, place)
    if rng.random() < 0.4:
        name = rng.choice((".DS_Store", "README.md", ".ipynb_checkpoints/a.png", "LICENSE"))
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(FORBIDDEN)


def picture(rng: random.Random, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), tuple(rng.randrange(256) for _ in range(3))).save(path)


def _classes(case: Case, rng: random.Random, place: Path, part: str) -> None:
    for group in ("cat", "dog"):
        for number in range(12):
            name = f"{part}{group}{number}.{rng.choice(('png', 'jpg', 'PNG'))}"
            picture(rng, place / group / name)
            case.planted[name] = group
            if part == "test":
                case.tests.add(name)


def _table(case: Case, rng: random.Random, place: Path, part: str) -> None:
    rows = []
    for number in range(24):
        name = f"{part}img{number}.png"
        picture(rng, place / "images" / name)
        case.planted[name] = "table"
        if part == "test":
            case.tests.add(name)
        answer = (
            {"label": ("cat", "dog")[number % 2]} if case.task == IMAGES else {"question": "what?", "answer": "a cat"}
        )
        rows.append({"image": name} | answer)
    (place / f"table{(ending := rng.choice(TABLE_FORMS))}").write_bytes(encoded(rows, ending))


def _damaged_classes(case: Case, rng: random.Random, place: Path) -> None:
    victim = next(path for path in sorted((place / "cat").iterdir()))
    kind = rng.choice(("broken", "empty", "text", "16 bits", "note", "folder", "empty class", "hidden class"))
    case.damage += f", {kind}"
    if kind in ("broken", "empty", "text", "16 bits"):
        case.fate = REFUSED
        if kind == "16 bits":
            victim.unlink()
            Image.new("I;16", (8, 8)).save(victim.with_suffix(".png"))
        else:
            victim.write_bytes({"broken": b"\x89PNG\r\n\x1a\nxxxx", "empty": b"", "text": b"hello"}[kind])
    elif kind == "note":
        (place / "cat" / "notes.txt").write_text(FORBIDDEN)
    elif kind == "folder":
        picture(rng, place / "cat" / "more" / "a.png")
    elif kind == "empty class":
        (place / "fox").mkdir()
    else:
        picture(rng, place / ".hidden" / "hidden.png")


def _damaged_table(case: Case, rng: random.Random, place: Path) -> None:
    (table,) = (path for path in place.iterdir() if path.stem == "table")
    kind = rng.choice(("gone image", "broken image", "two tables", "truncated", "no image column", "nested answer"))
    case.damage, case.fate = f"{case.damage}, {kind} {table.suffix}", REFUSED
    if kind in ("gone image", "broken image"):
        victim = sorted((place / "images").iterdir())[5]
        victim.unlink()
        if kind == "broken image":
            victim.write_bytes(b"GIF89a")
    elif kind == "two tables":
        (place / "other.csv").write_text("image,question,answer,label\n")
    elif kind == "truncated":
        content = table.read_bytes()
        table.write_bytes(content[: len(content) * 2 // 3])
        case.fate = REFUSED if table.suffix in (".json", ".parquet") else EITHER
    else:
        wrong: dict[str, Any] = {"picture": "a"} if kind == "no image column" else {"image": "0", "question": "q"}
        wrong |= {"label": ["a", ["b"]], "answer": {"text": "a"}}
        table.unlink()
        (place / "table.jsonl").write_text(json.dumps(wrong) + "\n")
