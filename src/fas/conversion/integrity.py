"""Whether a saved model is still what its manifest says: at every load, and of all its tensors for ``fas verify``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

from fas.conversion.files import Place, indexed, read_json, tensors_of, weight_files
from fas.conversion.manifest import (
    CONFIG,
    NAME,
    VERSION,
    checksum,
    content,
    digest_of,
    form_of,
    is_read,
    leaves_of,
)
from fas.errors import CheckpointError

ALL_BYTES = 1 << 30
"""Checkpoints up to this size are read whole at every load (half a second); of larger ones the neurons, and all of them by
``fas verify``."""
_OF_TIME = ("timesteps", "coding", "steps", "neurons_per_channel", "rows", "schedule", "cache")
_PART = re.compile(r"-\d{5}-of-\d{5}")
_ANEW = "put the file back as it was saved, or save the model anew (save_pretrained)"


def check_description(folder: Path) -> dict[str, Any] | None:
    """The manifest of ``folder``, after its configuration and small files were compared with it; None where it has none.

    Raises `CheckpointError` with the first thing that is not as it was saved. Folders of FAS 0.1 have no manifest.
    """
    manifest = manifest_of(folder)
    for problem in () if manifest is None else _of_description(folder, manifest):
        raise CheckpointError(problem)
    return manifest


def check_loaded(files: Sequence[str], config: Any) -> None:
    """Check the converted folder that holds the weight ``files`` of a model with ``config``, which transformers found.

    Raises `CheckpointError` with the first thing that is not as it was saved, and for files outside of the folder.
    """
    paths = [Path(file) for file in files]
    folder = paths[0].parent
    place = Path(str(getattr(config, "name_or_path", "")))
    if place.is_dir():
        inside = Path(os.path.abspath(place))
        strays = [file for file in paths if not Path(os.path.abspath(file)).is_relative_to(inside)]
    else:
        strays = [file for file in paths if file.parent != folder]
        _fetch(folder, place, config)
    if strays:
        raise CheckpointError(f"{place} takes its weights from {strays[0]}, outside of the folder, which is not read")
    if (folder / CONFIG).exists() and (manifest := check_description(folder)) is not None:
        check_tensors(paths, manifest)


def check_saved(folder: Path) -> None:
    """Check a local folder that has a manifest: a converted one, or the control in it."""
    if (folder / NAME).exists() and (manifest := check_description(folder)) is not None:
        check_tensors(weight_files(folder), manifest)


def _fetch(folder: Path, place: Path, config: Any) -> None:
    """Bring the manifest of a model on the hub into its ``folder`` in the cache, if it has one."""
    if not (folder / NAME).exists():
        revision = getattr(config, "_commit_hash", None)
        cached_file(str(place), NAME, revision=revision, _raise_exceptions_for_missing_entries=False)


def check_tensors(files: Iterable[Path], manifest: Mapping[str, Any]) -> None:
    """Compare the tensors in ``files`` with ``manifest``: all names, types and shapes, and the checksums of all tensors of a
    checkpoint up to `ALL_BYTES`, else of the neurons. Raises `CheckpointError` with the first that differs."""
    listed = list(files)
    there = tensors_of(listed)
    every = sum(place.bytes for place in there.values()) <= ALL_BYTES

    def reads(name: str) -> bool:
        return every or ".sites." in name

    for problem in _of_tensors(listed, there, manifest, reads):
        raise CheckpointError(problem)


def problems_in(folder: Path, advance: Callable[[str], None] = lambda name: None) -> list[str]:
    """Everything in ``folder`` that is not as it was saved, a sentence each. ``advance`` is told each tensor that was read.

    Raises `CheckpointError` where the folder has no manifest, or cannot be read.
    """
    manifest = manifest_of(folder)
    if manifest is None:
        raise CheckpointError(
            f"{folder} has no {NAME}: it was saved by FAS 0.1, or not by FAS; load it and save it anew (save_pretrained)"
        )
    found = list(_of_description(folder, manifest))
    files = weight_files(folder)

    def reads(name: str) -> bool:
        advance(name)
        return True

    there = tensors_of(files)
    found += _of_index(files, there)
    found += _of_tensors(files, there, manifest, reads)
    return found


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of ``folder``; None where there is none, and the description says nothing of one."""
    file = folder / NAME
    if not file.exists():
        description = read_json(folder / CONFIG).get("quantization_config")
        if isinstance(description, dict) and "digest" in description:
            raise CheckpointError(
                f"{folder} has no {NAME}, with which it was saved; put the file back, or save the model anew (save_pretrained)"
            )
        return None
    manifest = read_json(file)
    version = manifest.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(f"{file} has version {version!r}, this FAS reads up to {VERSION}; upgrade fas-snn")
    if not _is_whole(manifest):
        raise CheckpointError(f"{file} is damaged; {_ANEW}")
    return manifest


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    config, tensors, files = (manifest.get(key) for key in ("config", "tensors", "files"))
    if not (isinstance(config, dict) and isinstance(tensors, dict) and isinstance(files, dict)):
        return False
    entries = [entry for of_file in tensors.values() if isinstance(of_file, dict) for entry in of_file.values()]
    whole = all(isinstance(of_file, dict) for of_file in tensors.values())
    return whole and all(isinstance(entry, list) and len(entry) == 3 for entry in entries)


def _of_description(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the configuration and the small files."""
    config = read_json(folder / CONFIG)
    description = config.get("quantization_config")
    digest = description.pop("digest", None) if isinstance(description, dict) else None
    now, saved = leaves_of(config), manifest["config"]
    if not isinstance(description, dict) and any(key.startswith("quantization_config.") for key in saved):
        yield f"{folder / CONFIG} has lost its quantization_config, which says how the model spikes; {_ANEW}"
        saved = {key: value for key, value in saved.items() if not key.startswith("quantization_config")}
        now.pop("quantization_config", None)
    for key in sorted(now.keys() | saved.keys()):
        if key not in saved:
            yield f"{folder / CONFIG} has a new entry, {key} = {_short(now[key])}; remove it, or set it in Python and save anew"
        elif key not in now:
            yield f"{folder / CONFIG} has lost its entry {key}, which was {_short(saved[key])}; {_remedy(key)}"
        elif _text(now[key]) != _text(saved[key]):
            yield (
                f"{folder / CONFIG} was changed after it was saved: {key} is {_short(now[key])} and was {_short(saved[key])}; "
                f"{_remedy(key)}"
            )
    if digest is not None and digest != digest_of(manifest):
        yield f"{folder / NAME} is not the one that {CONFIG} was saved with, or was changed; {_ANEW}"
    yield from _of_files(folder, manifest["files"])


def _remedy(key: str) -> str:
    name = key.removeprefix("quantization_config.spiking.")
    if name != key and name in _OF_TIME:
        return f"put the old value back, and change it in Python: model.set_timesteps({name}=…), then save_pretrained"
    if key.startswith("quantization_config."):
        return "put the old value back, or convert anew with another value"
    return "put the old value back, or change it in Python on the loaded model's config, then save_pretrained"


def _of_files(folder: Path, saved: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the files of tokenizers, processors and generation; those of a tokenizer may be yet to come."""
    remedy = "put the original file back, or write it in Python (save_pretrained)"
    for name, digest in saved.items():
        if not is_read(name):  # notes and logs, which earlier versions took down
            continue
        file = folder / name
        if not file.is_file():
            yield f"{folder} lacks {name}, which was saved with it; {remedy}"
        elif content(file) != digest:
            yield f"{file} was changed after it was saved; {remedy}"
    if any(name.startswith(("tokenizer", "vocab")) for name in saved):
        new = sorted(file.name for file in folder.iterdir() if file.is_file() and is_read(file.name))
        for name in new:
            if name not in saved:
                yield f"{folder / name} was not saved with the model, and would be read; remove it"


def _of_tensors(
    files: Sequence[Path], there: Mapping[str, Place], manifest: Mapping[str, Any], reads: Callable[[str], bool]
) -> Iterator[str]:
    """What is wrong with the tensors ``there``; the bytes are looked at of those that ``reads`` says."""
    known = {name: entry for entries in manifest["tensors"].values() for name, entry in entries.items()}
    wanted = {file.name for file in files} | _beside(files, manifest)
    own = [manifest["tensors"][name] for name in wanted if name in manifest["tensors"]]
    known |= {name: entry for entries in own for name, entry in entries.items()}  # of several variants this one
    expected = {name for entries in own for name in entries} if own else set(known)
    for name in sorted(expected - there.keys()):
        yield f"{files[0].parent} lacks the tensor {name}, with which it was saved; {_ANEW}"
    for name, place in there.items():
        if name not in known:
            yield f"{place.file} holds the tensor {name}, which was not saved with the model; {_ANEW}"
        elif form_of(place) != known[name][:2]:
            dtype, shape = known[name][:2]
            is_dtype, is_shape = form_of(place)
            yield f"{place.file} holds {name} as {is_dtype} {is_shape}, and it was saved as {dtype} {shape}; {_ANEW}"
        elif reads(name) and checksum(place) != known[name][2]:
            yield f"{place.file} is damaged: {name} has other values than were saved; {_ANEW}"


def _beside(files: Sequence[Path], manifest: Mapping[str, Any]) -> set[str]:
    """Saved files that ``files`` are parts of one checkpoint with, by their names; an index may have lost them."""
    stems = {_PART.sub("", file.name) for file in files if _PART.search(file.name)}
    return {name for name in manifest["tensors"] if _PART.search(name) and _PART.sub("", name) in stems}


def _of_index(files: Sequence[Path], there: Mapping[str, Place]) -> Iterator[str]:
    """What is wrong with the index of a checkpoint in several ``files``, which hold the tensors ``there``."""
    index = files[0].parent / SAFE_WEIGHTS_INDEX_NAME
    if len(files) < 2 or not index.exists():
        return
    for name, file in indexed(index).items():
        if name not in there or there[name].file.name != file:
            yield f"{index} says that {file} holds the tensor {name}, and it does not; {_ANEW}"


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
