"""The data files of a folder, by the split that their names say; all else is left alone, and told."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fas.errors import DataError
from fas.tasks.reading.contents import kind_of
from fas.tasks.reading.journal import Reading
from fas.tasks.reading.names import PACKED, form_of, set_aside, shown, splits_of, why_unread


class Found(NamedTuple):
    """A file and what lines call it."""

    path: Path
    name: str

    def __str__(self) -> str:
        return self.name


Parts = dict[str | None, list[Found]]
"""Files by split; None: those whose names say none."""
SILENT_SECONDS = 3.0
"""A search that takes longer says how far it is."""
_LONGEST_CARD = 1 << 20
_FRONT = re.compile(r"\A\ufeff?---\r?\n(.*?)\r?\n---", re.DOTALL)


def files_in(folder: Path, forms: Mapping[str, str], reading: Reading) -> Parts:
    """All files below ``folder`` with an ending of ``forms``, by split, in the order of their names.

    The file's own name decides, else the nearest folder's that says a split. Cards, licences, hidden files, and what has
    another ending go into ``reading`` as skipped. Raises `DataError` for a folder that cannot be listed or that holds several
    configurations of a hub data set, and for a name that says two splits.
    """
    _one_configuration(folder)
    parts: Parts = {}
    for path in sorted(walked(folder, reading)):
        name = path.relative_to(folder)
        if form_of(path.name, forms) is None:
            reading.skip(name, why_unread(path.name))
        elif path.suffix.lower() in PACKED and path.with_suffix("").is_file():
            reading.skip(name, "is there unpacked, too")
        else:
            parts.setdefault(split_in(name), []).append(Found(path, shown(name)))
    return parts


def split_in(name: Path) -> str | None:
    """The split that the file ``name`` belongs to by its own name, else by the nearest folder; None: none is said.

    >>> split_in(Path("data/train-00000-of-00002.parquet")), split_in(Path("test/a.txt")), split_in(Path("a/b.txt"))
    ('train', 'test', None)
    """
    for level, part in enumerate((name.name, *(parent.name for parent in name.parents))):
        found = splits_of(part)
        if len(found) == 1:
            return found.pop()
        if found and level == 0:
            raise DataError(
                f"{shown(name)} says {' and '.join(sorted(found))} at once; rename it, or give the files themselves "
                "(--data, --eval-data)"
            )
    return None


def walked(folder: Path, reading: Reading) -> Iterator[Path]:
    """Every regular file below ``folder`` that may be data, folders behind links included, each folder once."""
    seen: set[str] = set()
    waiting, found, told = [folder], 0, time.monotonic()
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        if real in seen:
            reading.skip(place.relative_to(folder), "a link back to a folder that is read")
            continue
        seen.add(real)
        folders = []
        for entry in _entries(place):
            name = entry.relative_to(folder)
            if reason := set_aside(entry.name):
                reading.skip(name, reason)
                continue
            kind = kind_of(entry)
            if kind == "folder":
                folders.append(entry)
            elif kind == "file" and entry.is_file():
                found += 1
                yield entry
            else:
                reading.skip(name, "broken link" if entry.is_symlink() else "no regular file")
            if time.monotonic() - told > SILENT_SECONDS:
                reading.progress.note(f"still looking through {shown(folder)}: {found:,} files so far")
                told = time.monotonic()
        waiting += reversed(folders)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be read: {error.strerror}") from None


def _one_configuration(folder: Path) -> None:
    """Raise `DataError` where files of several configurations of a hub data set are there, by its card: they are not mixed."""
    card = folder / "README.md"
    if not card.is_file():
        return
    try:
        with card.open(encoding="utf-8") as file:
            front = _FRONT.match(file.read(_LONGEST_CARD))
        told = yaml.safe_load(front[1]) if front else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return
    found = told.get("configs") if isinstance(told, dict) else None
    listed = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    names = [shown(one.get("config_name")) for one in listed if _is_there(folder, one.get("data_files"))]
    if len(names) > 1:
        raise DataError(
            f"{shown(folder)} holds {len(names)} configurations ({', '.join(names[:8])}); give the folder or the files of one"
        )


def _is_there(folder: Path, files: Any) -> bool:
    """Whether one of the patterns ``files`` of a card, texts or lists with ``path``, names a file of ``folder``."""
    if isinstance(files, list):
        return any(_is_there(folder, one) for one in files)
    if isinstance(files, dict):
        return _is_there(folder, files.get("path"))
    try:
        return isinstance(files, str) and next(folder.glob(files), None) is not None
    except (ValueError, NotImplementedError, OSError):
        return False
