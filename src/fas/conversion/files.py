"""The safetensors files of a checkpoint: which there are, and where in them each tensor lies.

Files are read at the offsets that safetensors documents, not mapped: a mapping of the whole file counts as memory where
that is limited.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import torch
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from fas.errors import CheckpointError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Place(NamedTuple):
    """Where a tensor lies."""

    file: Path
    start: int
    bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint; raises `CheckpointError` if there is none, or its index cannot be followed."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no local folder; from disk, weights are read from one")
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).exists():
        return [folder / SAFE_WEIGHTS_NAME]
    if not index.exists():
        raise CheckpointError(f"{folder} holds no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}")
    return [folder / name for name in sorted(set(indexed(index).values()))]


def indexed(index: Path) -> dict[str, str]:
    """The file of each tensor, by the index of a checkpoint in several files; raises `CheckpointError` for another form, and
    for files outside of the folder."""
    mapped = read_json(index).get("weight_map")
    if not isinstance(mapped, dict) or not mapped or not all(isinstance(name, str) for name in mapped.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files; save the model anew (save_pretrained)")
    outside = next((name for name in mapped.values() if not _is_plain(name)), None)
    if outside is not None:
        raise CheckpointError(
            f"{index} names the file {outside!r} outside of its folder, which is not read; put the file beside the index"
        )
    return mapped


def _is_plain(name: str) -> bool:
    """Whether ``name`` stays inside of a folder on every system."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.drive or ".." in path.parts:
            return False
    return bool(name)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``; raises `CheckpointError` where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({_said(error)}); put the original file back") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{file} holds a {type(found).__name__} where a JSON object is expected; put the original file back"
        )
    return found


def _said(error: BaseException) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def places_in(file: Path) -> dict[str, Place]:
    """Where each tensor of a safetensors ``file`` lies; raises `CheckpointError` for a file that is damaged or no such one."""
    try:
        refuse_pointer(file)
        with file.open("rb") as opened:
            whole = file.stat().st_size
            size = int.from_bytes(opened.read(8), "little")
            if size + 8 > whole:
                raise ValueError(f"it says that its header has {size} bytes")
            header = json.loads(opened.read(size))
        if not isinstance(header, dict):
            raise ValueError(f"its header is a {type(header).__name__}")
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        places = {name: _place(file, name, entry, 8 + size, whole) for name, entry in entries}
        end = max((place.start + place.bytes for place in places.values()), default=8 + size)
        if end != whole:
            raise ValueError(f"it has {whole} bytes where its header says {end}")
        return places
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no safetensors file ({_said(error)})") from error


_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(file: Path) -> None:
    """Raise `CheckpointError` where ``file`` stands for weights that Git has not fetched."""
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(f"{file} is a pointer of Git LFS and not the weights; fetch them with git lfs pull")


def tensors_of(files: Iterable[Path]) -> dict[str, Place]:
    """Where the tensors of several files lie."""
    return {name: place for file in files for name, place in places_in(file).items()}


def _place(file: Path, name: str, entry: Any, data: int, whole: int) -> Place:
    """One entry of a header, whose data begin at ``data`` in a file of ``whole`` bytes."""
    try:
        first, last = entry["data_offsets"]
        shape = tuple(entry["shape"])
        kind = entry["dtype"]
        expected = math.prod(shape) * DTYPES[kind].itemsize if kind in DTYPES else None
        wrong = not 0 <= first <= last or any(length < 0 for length in shape)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"its header says of {name} only {str(entry)[:80]}") from None
    if expected is None:
        raise CheckpointError(f"{file} holds weights of a type that is not read here: {kind!r}, of {name}")
    if wrong or last - first != expected:
        raise ValueError(f"its header gives {name} {list(shape)} the bytes {first} to {last}")
    if data + last > whole:
        raise CheckpointError(f"{file} ends before {name}; it is damaged")
    return Place(file, data + first, last - first, DTYPES[kind], shape)
