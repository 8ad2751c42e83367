"""Layers that Stage 2 has finished, kept in a folder, so that a killed calibration goes on where it was.

One file a layer: its neuron parameters and its report, written beside and renamed, so that it exists whole or not at all.
What the layers in front give out is computed anew from them, and comes out the same: everything in Stage 2 is deterministic.
"""

from __future__ import annotations

import hashlib
import json
import os
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
from fas.neurons import NeuronParameters, Site


class KeptLayers:
    """``folder`` for a calibration with ``fingerprint``.

    Raises `CheckpointError` if another calibration's layers lie there, or if it cannot be written.
    """

    def __init__(self, folder: Path | str, fingerprint: str) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint

    def load(self, layer: str, sites: Sequence[Site]) -> dict[str, Any] | None:
        """Put the finished parameters of ``layer`` into its ``sites`` and return its report; None if it is not finished."""
        path = self._path(layer)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as stored:
                about = stored.metadata() or {}
            values = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); remove it, and the layer is calibrated again"
            ) from error
        if about.get("fingerprint") != self.fingerprint:
            raise CheckpointError(
                f"{path} is of a calibration of another model, data, options or versions; give another folder or remove it"
            )
        for site in sites:
            entry = _parameters(site)
            entry.load_state_dict({name: values[f"{site.name}.{name}"] for name in entry.state_dict()})
        return json.loads(about["report"])

    def store(self, layer: str, sites: Sequence[Site], report: Mapping[str, Any]) -> None:
        """Keep what ``sites`` were given and the ``report`` of ``layer``."""
        values = {
            f"{site.name}.{name}": value.detach().cpu().contiguous()
            for site in sites
            for name, value in _parameters(site).state_dict().items()
        }
        path = self._path(layer)
        staged = path.with_suffix(".new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(values, staged, metadata={"fingerprint": self.fingerprint, "report": json.dumps(report)})
            os.replace(staged, path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} could not be written ({error}); the finished layers before it are kept"
            ) from error

    def _path(self, layer: str) -> Path:
        return self.folder / f"{layer}.safetensors"


def file_name(key: str) -> str:
    """``key`` of a coding and time as a part of a file's name, which has no room for long schedules."""
    return key if len(key) <= 100 else f"{key[:60]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def fingerprint_of(
    weights: Iterable[tuple[str, Tensor]], batches: Sequence[Mapping[str, Any]], settings: Any, key: str
) -> str:
    """Hash of all that decides a calibration: weights, batches, options, coding and time, version of torch."""
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


def _parameters(site: Site) -> NeuronParameters:
    found = site.parameters_for(site.clock.config)
    assert found is not None
    return found
