"""One file with one damage, or none."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_files import (
    CLASSES,
    EITHER,
    PACKERS,
    QUESTIONS,
    READ,
    REFUSED,
    SCORES,
    Case,
    Rows,
    content_of,
    encoded,
    endings_of,
    plant,
    rows_of,
    texts,
)  # fmt: skip


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
    stems = ("a b", "naïve", "日本", "-rf", "we'ird \"q", "a\nb", "%s{}", "x" * 200, ".hidden", "README")
    stem = rng.choice((os.fsdecode(b"d\xff"), *stems))
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
