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
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
