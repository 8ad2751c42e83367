"""Finished parts of long work, kept in a folder, so that what is killed goes on where it was.

One file a part, its tensors and its report, written beside and renamed, so that it exists whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fas.errors import CheckpointError
from fas.storage import whole_file


class Kept:
    """``folder`` for work with ``fingerprint``.

    Raises `CheckpointError` if parts of other work lie there, or if it cannot be written.
    """

    def __init__(self, folder: Path | str, fingerprint: str) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint

    def read(self, part: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and report of a finished part; None if it is not finished."""
        path = self.path(part)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as stored:
                about = stored.metadata() or {}
            values = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); remove it, and it is computed again") from error
        if about.get("fingerprint") != self.fingerprint:
            raise CheckpointError(
                f"{path} is of another model, data, options or versions; give another folder or remove it"
            )
        return values, json.loads(about["report"])

    def write(self, part: str, values: Mapping[str, Tensor], report: Mapping[str, Any]) -> None:
        """Keep a finished part."""
        path = self.path(part)
        held = {name: value.detach().cpu().contiguous() for name, value in values.items()}
        about = {"format": "pt", "fingerprint": self.fingerprint, "report": json.dumps(report)}
        with whole_file(path, "what was finished before is kept") as staged:
            save_file(held, staged, metadata=about)

    def path(self, part: str) -> Path:
        """The file of a part."""
        return self.folder / f"{part}.safetensors"


def fingerprint_of(
    weights: Iterable[tuple[str, Tensor]], batches: Sequence[Mapping[str, Any]], settings: Any, key: str
) -> str:
    """Hash of all that decides long work: weights, batches, options, its ``key``, version of torch."""
    digest = hashlib.sha256(json.dumps([asdict(settings), key, torch.__version__]).encode())
    tensors = [
        (f"{index}.{name}", value)
        for index, batch in enumerate(batches)
        for name, value in batch.items()
        if isinstance(value, Tensor)
    ]
    for name, value in chain(weights, tensors):
        if ".neurons." in name:  # what other calibrations have found decides nothing here
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
