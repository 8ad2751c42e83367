"""Data as users have it and as it breaks: files and folders drawn by a seed, and what is to become of them.

Every text is planted: it says which file and row it stands in, so that whatever is read can be traced.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
TEXT, CLASSES, SCORES = "language-modeling", "text-classification", "text-regression"
IMAGES, QUESTIONS_OF_IMAGES, QUESTIONS = "image-classification", "vqa", "questions"
TASKS = (TEXT, TEXT, TEXT, CLASSES, CLASSES, SCORES, IMAGES, QUESTIONS_OF_IMAGES, QUESTIONS)
TABLE_FORMS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
FORBIDDEN = "FORBIDDEN words that are no data"
READ, REFUSED, EITHER = "read", "refused", "either"

Rows = list[dict[str, Any]]


@dataclass
class Case:
    """What was made, and what is to become of it."""

    number: int
    task: str
    data: Path
    damage: str
    fate: str = READ
    """``read``: all of it; ``refused``: in one sentence; ``either``."""
    planted: dict[str, str] = field(default_factory=dict)
    """Texts (of images: names) that may be read, with the file that they stand in."""
    tests: set[str] = field(default_factory=set)
    """Those of a test split, which are not trained on."""
    files: set[str] = field(default_factory=set)
    """Everything in the folder, of which each is either read or told as skipped."""


def texts(rng: random.Random, name: str, count: int = 30) -> list[str]:
    """Texts whose first word says where they stand."""
    words = ("cat", "naïve", "日本", "a,b", 'said "no"', "tab", "it's", "= x =", "NA", "null", "1.5")
    return [
        f"{name.replace('.', '-')}-{i} {' '.join(rng.choice(words) for _ in range(rng.randint(1, 9)))}"
        for i in range(count)
    ]


def rows_of(task: str, some: list[str]) -> Rows:
    """The same as rows of a table of ``task``."""
    if task == TEXT:
        return [{"id": i, "text": text} for i, text in enumerate(some)]
    if task == CLASSES:
        return [{"text": text, "label": ("good", "bad", "fair")[i % 3]} for i, text in enumerate(some)]
    if task == SCORES:
        return [{"text": text, "score": str(i / 4)} for i, text in enumerate(some)]
    return [{"query": text, "choices": ["yes", "no"], "gold": i % 2} for i, text in enumerate(some)]


def encoded(rows: Rows, ending: str) -> bytes:
    """A table as a file."""
    if ending == ".parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue()
    if ending == ".json":
        return json.dumps(rows, ensure_ascii=False).encode()
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if ending == ".tsv":  # quotation marks are text there
        lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
        return ("\n".join(lines) + "\n").encode()
    sink_text = io.StringIO(newline="")
    writer = csv.DictWriter(sink_text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return sink_text.getvalue().encode()


def plant(case: Case, name: str, some: list[str], content: bytes, test: bool = False) -> Path:
    """A file of the case with these texts."""
    path = case.data / name if case.data.is_dir() else case.data
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    case.planted |= dict.fromkeys(some, name)
    if test:
        case.tests |= set(some)
    case.files.add(name)
    return path


def document_file(some: list[str]) -> bytes:
    return "\n\n".join(some).encode()


def endings_of(task: str) -> tuple[str, ...]:
    if task == QUESTIONS:
        return (".jsonl", ".json", ".parquet")
    return (*TABLE_FORMS, ".txt", ".md") if task == TEXT else TABLE_FORMS


def content_of(task: str, some: list[str], ending: str) -> bytes:
    return document_file(some) if ending in (".txt", ".md") else encoded(rows_of(task, some), ending)


# one file


def single(case: Case, rng: random.Random, folder: Path) -> None:
    """One file with one damage, or none."""
    ending = rng.choice(endings_of(case.task))
    some = texts(rng, f"one{case.number}")
    damage, fate, name, content = rng.choice(DAMAGES)(rng, case.task, some, ending)
    case.data, case.damage, case.fate = folder / name, f"{ending} {damage}", fate
    plant(case, name, some, content)


Damaged = tuple[str, str, str, bytes]


def _none(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    return "whole", READ, f"data{ending}", content_of(task, some, ending)


def _mark(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    content = content_of(task, some, ending)
    return "byte order mark", READ, f"d{ending}", content if ending == ".parquet" else b"\xef\xbb\xbf" + content


def _returns(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    content = content_of(task, some, ending)
    return "CRLF", READ, f"d{ending}", content if ending == ".parquet" else content.replace(b"\n", b"\r\n")


def _packed(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    packing = rng.choice(list(PACKERS))
    if ending == ".parquet":
        return "packed parquet", REFUSED, f"d{ending}{packing}", PACKERS[packing](content_of(task, some, ending))
    name = f"d{rng.choice((ending, ending.upper()))}{packing}"
    return "compressed", READ, name, PACKERS[packing](content_of(task, some, ending))


def _capitals(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    return "capitals", READ, f"DATA{ending.upper()}", content_of(task, some, ending)


def _odd_name(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    stem = rng.choice(("a b", "naïve", "日本", "-rf", "we'ird \"q", "a\nb", "%s{}", "x" * 200, ".hidden", "README"))
    return "odd name", READ, f"{stem}{ending}", content_of(task, some, ending)


def _separators(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    some[:] = [text.replace(" ", rng.choice(("\u2028", "\u2029", "\x85", "\u00a0")), 1) for text in some]
    return "unicode lines", READ, f"d{ending}", content_of(task, some, ending)


def _long(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    some[3] += " word" * rng.choice((40_000, 400_000))
    return "long text", READ, f"d{ending}", content_of(task, some, ending)


def _cut(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    content = content_of(task, some, ending)
    place = rng.randrange(len(content) // 3, len(content) - 2)
    fate = REFUSED if ending in (".json", ".parquet") else EITHER
    return "truncated", fate, f"d{ending}", content[:place]


def _zeros(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    content = content_of(task, some, ending)
    fate = EITHER if ending == ".parquet" else REFUSED
    return "zero bytes at the end", fate, f"d{ending}", content[: len(content) // 2] + bytes(4096)


def _noise(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    return "random bytes", REFUSED, f"d{ending}", rng.randbytes(rng.randint(1000, 5000)) + b"\xff\xfe\xfd\0"


def _flipped(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    content = bytearray(content_of(task, some, ending))
    for _ in range(rng.randint(1, 5)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return "flipped bits", EITHER, f"d{ending}", bytes(content)


def _encoding(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    if ending == ".parquet":
        return _noise(rng, task, some, ending)
    text = (content_of(task, some, ending).decode() + "\n" + "é" * 9).encode(
        rng.choice(("utf-16", "utf-16-le")), "replace"
    )
    return "UTF-16", REFUSED, f"d{ending}", text


def _latin(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    if ending == ".parquet":
        return _noise(rng, task, some, ending)
    some[0] += " café."
    return "Latin-1", REFUSED, f"d{ending}", content_of(task, some, ending).decode().encode("latin-1", "replace")


def _empty(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    return "empty", REFUSED, f"d{ending}", rng.choice((b"", b"\n", b"  \n\n", b"\xef\xbb\xbf"))


def _unread(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    name = "d" + rng.choice((".pdf", ".docx", ".zip", ".tar.gz", ".xlsx", ".pkl", ".txt.bak"))
    return "other ending", REFUSED, name, content_of(task, some, ending)


def _other_form(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    other = {".jsonl": ".csv", ".json": ".tsv", ".csv": ".json", ".tsv": ".jsonl", ".parquet": ".txt"}.get(
        ending, ".jsonl"
    )
    if task == QUESTIONS:
        other = ".parquet" if ending != ".parquet" else ".jsonl"
    return f"is called {other}", REFUSED, f"d{other}", content_of(task, some, ending)


def _pointer(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    return "pointer of LFS", REFUSED, f"d{ending}", pointer


def _not_packed(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    content = content_of(task, some, ending)
    packing = rng.choice(list(PACKERS))
    broken = content if rng.random() < 0.5 else PACKERS[packing](content)[: len(content) // 9]
    return f"no {packing}", REFUSED, f"d{ending}{packing}", broken


def _bomb(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    return "compressed blanks", REFUSED, f"d{ending}.gz", gzip.compress(b" " * 5_000_000)


def _rows_damage(change: Callable[[random.Random, str, Rows], tuple[str, str]], forms: tuple[str, ...]) -> Any:
    def damage(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
        ending = ending if ending in forms else rng.choice([f for f in forms if f in endings_of(task)] or [".jsonl"])
        rows = rows_of(task, some)
        what, fate = change(rng, task, rows)
        return what, fate, f"d{ending}", encoded(rows, ending)

    return damage


def _text_column(task: str) -> str:
    return "query" if task == QUESTIONS else "text"


def _no_text(rng: random.Random, task: str, rows: Rows) -> tuple[str, str]:
    value = rng.choice((None, 3, 2.5, True, ["a", "b"], {"body": "a"}, [{"role": "user", "content": "x"}]))
    rows[rng.randrange(len(rows))][_text_column(task)] = value
    return f"text is {type(value).__name__}", REFUSED


def _missing(rng: random.Random, task: str, rows: Rows) -> tuple[str, str]:
    del rows[rng.randrange(1, len(rows))][_text_column(task)]
    return "missing field", REFUSED


def _all_nested(rng: random.Random, task: str, rows: Rows) -> tuple[str, str]:
    inner = [dict(row) for row in rows]
    rows[:] = rng.choice(([{"data": inner}], [{"row": row} for row in inner], [{"messages": "hello"} for _ in inner]))
    return "all nested", REFUSED


def _surrogate(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    rows = rows_of(task, some)
    rows[2][_text_column(task)] += "\ud83d"
    return "half a surrogate pair", REFUSED, "d.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()


def _twice(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    lines = encoded(rows_of(task, some), ".jsonl").decode().splitlines()
    lines[4] = lines[4][:-1] + f', "{_text_column(task)}": "other"}}'
    return "a key twice", REFUSED, "d.jsonl", "\n".join(lines).encode()


def _deep(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    depth = rng.choice((100, 100_000))
    return "nested deeply", REFUSED, f"d{rng.choice(('.json', '.jsonl'))}", b"[" * depth + b"]" * depth


def _digits(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    return "a number of 9,000 digits", REFUSED, "d.jsonl", b'{"text": "a", "label": ' + b"9" * 9000 + b"}\n"


def _ragged(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    if task == QUESTIONS:
        return _none(rng, task, some, ".jsonl")
    form = rng.choice((".csv", ".tsv"))
    lines = (
        encoded(rows_of(task, [text.replace('"', "'").replace(",", ";") for text in some]), form).decode().splitlines()
    )
    place = rng.randrange(1, len(lines))
    delimiter = "," if form == ".csv" else "\t"
    lines[place] = rng.choice((lines[place] + delimiter + "more", lines[place].split(delimiter)[0]))
    return "ragged", REFUSED, f"d{form}", "\n".join(lines).encode()


def _open_quote(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    if task == QUESTIONS:
        return _none(rng, task, some, ".jsonl")
    lines = encoded(rows_of(task, some), ".csv").decode().splitlines()
    lines[5] = '"' + lines[5].replace('"', "")
    return "open quotation mark", REFUSED, "d.csv", "\n".join(lines).encode()


def _no_header(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    if task in (CLASSES, SCORES, QUESTIONS):  # a table of labelled texts may lack it, if the columns are told
        return _none(rng, task, some, ".jsonl")
    content = encoded([{"text": text} for text in some], ".csv").split(b"\n", 1)[1]
    return "no header", REFUSED, "d.csv", content


def _semicolons(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    if task == QUESTIONS:
        return _none(rng, task, some, ".jsonl")
    label = "score" if task == SCORES else "label"
    lines = [f"text;{label}", *(f"{text.replace(',', ' ').replace(chr(34), '')};1" for text in some)]
    return "semicolons", REFUSED, "d.csv", "\n".join(lines).encode()


_LABELS = (
    float("nan"), float("inf"), -float("inf"), None, "", "nan", [1], {"a": 1}, True, 1.5, 10**400, "x",
)  # fmt: skip


def _label(rng: random.Random, task: str, some: list[str], ending: str) -> Damaged:
    if task not in (CLASSES, SCORES):
        return _none(rng, task, some, ".jsonl")
    column, wrong = ("score" if task == SCORES else "label"), rng.choice(_LABELS)
    rows = [{"text": text, column: i % 3} for i, text in enumerate(some)]
    rows[rng.randrange(1, len(rows))][column] = wrong
    fine = task == SCORES and wrong == 1.5
    return f"label {str(wrong)[:9]!r}", READ if fine else REFUSED, "d.jsonl", encoded(rows, ".jsonl")


DAMAGES: tuple[Callable[[random.Random, str, list[str], str], Damaged], ...] = (
    _none, _mark, _returns, _packed, _capitals, _odd_name, _separators, _long, _cut, _zeros, _noise, _flipped, _encoding,
    _latin, _empty, _unread, _other_form, _pointer, _not_packed, _bomb, _surrogate, _twice, _deep, _digits, _ragged,
    _open_quote, _no_header, _semicolons, _label, _label,
    _rows_damage(_no_text, (".jsonl", ".json")), _rows_damage(_missing, (".jsonl", ".json")),
    _rows_damage(_all_nested, (".jsonl", ".json")),
)  # fmt: skip


# folders

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


def made(number: int, folder: Path) -> Case:
    """The case of that number, written into the empty ``folder``; the same each time."""
    rng = random.Random(f"data {number}")
    case = Case(number, rng.choice(TASKS), folder, "")
    if case.task in (IMAGES, QUESTIONS_OF_IMAGES):
        images(case, rng, folder)
    elif case.task == QUESTIONS or rng.random() < 0.65:
        single(case, rng, folder)
    else:
        folder_of(case, rng, folder)
    return case
