"""Which files, or splits of a data set of the hub, are trained on, held out and evaluated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Generic, TypeVar

from fas.errors import DataError
from fas.tasks.reading.journal import Reading
from fas.tasks.reading.names import TEST, TRAIN, VALIDATION, shown, splits_of

Item = TypeVar("Item")
BY_TEST = (TEST, VALIDATION)
"""Splits that are evaluated on, best first."""
BY_VALIDATION = (VALIDATION, TEST)
"""The same of GLUE, whose test labels are not public."""


@dataclass(frozen=True)
class Uses(Generic[Item]):
    """Files or splits by use; ``held_out`` and ``evaluation`` are drawn from ``training`` where they are empty."""

    training: list[Item]
    held_out: list[Item]
    evaluation: list[Item]
    divided: bool = True
    """Whether names of splits decided; else all is training."""

    def trained_on(self, source: str, parts: Mapping[str | None, Sequence[Item]]) -> list[Item]:
        """``training``; raises `DataError` where the data has other splits only."""
        if not self.training and self.divided:
            told = [_told(split, list(map(str, items))) for split, items in parts.items() if split and items]
            raise DataError(
                f"{shown(source)} has no split called train, but {' and '.join(told)}: what is for validation or test is not "
                "trained on; give the file to train on itself, and --eval-data"
            )
        return self.training


def by_use(
    parts: Mapping[str | None, Sequence[Item]],
    reading: Reading,
    given: bool = False,
    order: Sequence[str] = BY_TEST,
) -> Uses[Item]:
    """``parts``, by split, by use: train is trained on, the first split of ``order`` that is there evaluated on, and validation
    held out where it is not evaluated on.

    Without names of splits all of them are trained on. What has no split beside others that have one is skipped.

    Args:
        parts: files or splits; None: those whose names say no split.
        reading: is told what is skipped.
        given: other data is evaluated on.
        order: splits that may be evaluated on, best first.
    """
    known = {split: list(items) for split, items in parts.items() if items and split is not None}
    if not known:
        return Uses(list(parts.get(None, ())), [], [], divided=False)
    for item in parts.get(None, ()):
        reading.skip(str(item), "no split in its name, and others have one")
    chosen = None if given else next((split for split in order if split in known), None)
    held = VALIDATION if chosen != VALIDATION and VALIDATION in known and order is not BY_VALIDATION else None
    for split in (TEST, VALIDATION):
        if split in known and split not in (chosen, held):
            for item in known[split]:
                reading.skip(str(item), "other data is evaluated on" if given else f"{chosen} is evaluated on")
    return Uses(known.get(TRAIN, []), known.get(held or "", []), known.get(chosen or "", []))


def note_test(parts: Mapping[str | None, Sequence[Item]], reading: Reading) -> None:
    """Note that a file that was named itself is trained on, and is called a test split."""
    for item in parts.get(None, ()):
        if splits_of(PurePath(str(item)).name) == {TEST}:
            reading.note(f"{item} is called a test split, and is trained on as it was given for that")


def evaluated(
    parts: Mapping[str | None, Sequence[Item]], reading: Reading, order: Sequence[str] = BY_TEST
) -> list[Item]:
    """What is evaluated of data given for that: its test split, else validation, else all without a split, else train."""
    found = next((split for split in (*order, None, TRAIN) if parts.get(split)), None)
    for split, items in parts.items():
        if split != found:
            for item in items:
                reading.skip(str(item), f"{found or 'the rest'} is evaluated on")
    return list(parts.get(found, ()))


def by_split(names: Sequence[str], source: str, hint: str = "") -> dict[str | None, list[str]]:
    """``names`` of splits of the hub's ``source`` by what they say. Raises `DataError`, with ``hint``, where none says any.

    >>> by_split(["train", "test", "unsupervised"], "owner/name")
    {'train': ['train'], 'test': ['test'], None: ['unsupervised']}
    """
    if not any(len(splits_of(name)) == 1 for name in names):
        raise DataError(f"{source} has no split called train, but {', '.join(names) or 'none at all'}{hint}")
    parts: dict[str | None, list[str]] = {}
    for name in names:
        found = splits_of(name)
        parts.setdefault(found.pop() if len(found) == 1 else None, []).append(name)
    return parts


def _told(split: str, names: list[str]) -> str:
    return split if names == [split] else f"{split} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"
