"""Stage 1 of a model that does not fit into memory: weights of a block at a time from its files, hidden states in files."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from fas.config import SpikingConfig
from fas.conversion.card import NAME as CARD
from fas.conversion.card import write_card
from fas.conversion.description import describe
from fas.conversion.install import decoders
from fas.conversion.kept import Kept, fingerprint_of
from fas.conversion.manifest import write_manifest
from fas.conversion.prefix_search import PrefixSearch, find_prefix
from fas.conversion.shelf import Shelf, skeleton
from fas.errors import ConfigError
from fas.given import Batches, class_from, config_from, device_from, folder_from, options_from
from fas.neurons.clock import Stage
from fas.progress import Progress, progress_from
from fas.runtime.control import clock_of
from fas.runtime.replay import blocks_of
from fas.sections import Reports
from fas.storage import whole_folder
from fas.training.block import BlockOptions, BlockReport
from fas.training.blocks import batches_to_train, key_of
from fas.training.pair import Pair, in_turn, only_segment
from fas.training.walk import Walk

_VERB = "fas.train_blocks_folder"


def train_blocks_folder(
    folder: Path | str,
    out: Path | str,
    config: SpikingConfig | Mapping[str, Any],
    batches: Batches,
    options: BlockOptions | Mapping[str, Any] | None = None,
    progress: Progress | bool | None = None,
    *,
    device: torch.device | str = "cpu",
    auto_class: Any = AutoModelForCausalLM,
    stage: Stage = "qcfs",
) -> Reports[BlockReport]:
    """Train the ANN in ``folder`` a block at a time into the new folder ``out``, as `train_blocks` does in memory.

    In memory are the weights of one block, its gradients and optimizer states, what runs in front of the first block (the
    embedding) while that is recorded, and one batch. Finished blocks are kept in ``out``.work; the same call goes on after an
    interruption and ends the same, bit for bit. Raises `CheckpointError` for a folder that cannot be read a block at a time or
    whose weights are not finite, `ConfigError` if ``out`` exists, and what `train_blocks` raises.

    Args:
        folder: The ANN, in the safetensors format.
        out: A folder that does not exist.
        config: What the SNN is to be.
        batches: Keyword arguments of the model; one of them is a step.
        options: How blocks are trained.
        progress: Who is told how far it is.
        device: Where blocks are trained.
        auto_class: The class that loads the folder.
        stage: What the folder holds: the QCFS model, or the SNN that it becomes, uncalibrated.
    """
    config, progress = config_from(config, _VERB), progress_from(progress)
    options = options_from(options, BlockOptions, _VERB) or BlockOptions()
    folder, out = folder_from(folder, "folder", _VERB), folder_from(out, "out", _VERB)
    device = device_from(device, _VERB)
    class_from(auto_class, _VERB)
    if stage not in get_args(Stage):
        raise ConfigError(f"{_VERB}: stage={stage!r} is not valid; give one of {', '.join(get_args(Stage))}")
    if out.exists():
        raise ConfigError(f"{out} exists already; give a folder that does not")
    if out.resolve().is_relative_to(Path(folder).resolve()):
        raise ConfigError(f"{out} lies inside {folder}, whose files it will hold; give a folder outside")
    shelf = Shelf(folder)
    pair = _pair(shelf, auto_class, device)
    listed = batches_to_train(pair.teacher, batches, _VERB, torch.device("cpu"))
    placed = _placed(listed, device)
    only_segment(pair.teacher, config)  # refused before anything is written
    fingerprint = fingerprint_of(shelf.tensors(), listed, options, key_of(config))
    work = out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    kept = Kept(work / "blocks", fingerprint)
    walk = Walk(pair, config, placed, options, progress, kept, work)
    reports = Reports(walk.run())
    clock_of(walk.pair.student).stage = stage
    _write(shelf, walk, kept, out)
    shutil.rmtree(work)
    return reports


def prefix_search_from_disk(
    folder: Path | str,
    config: SpikingConfig,
    batches: Iterable[Mapping[str, Any]],
    progress: Progress | None = None,
    *,
    device: torch.device | str = "cpu",
    auto_class: Any = AutoModelForCausalLM,
) -> PrefixSearch | None:
    """Search a prefix for the ANN in ``folder`` as `find_prefix` does, its blocks read anew for each pass; None where the model
    can have none. Raises `CheckpointError` for weights that are not finite.

    Args:
        folder: The ANN, in the safetensors format.
        config: Levels and rotation, which decide how well values are rounded.
        batches: Keyword arguments of the model.
        progress: Who is told what is found.
        device: Where blocks run.
        auto_class: The class that loads the folder.
    """
    device = torch.device(device)
    shelf = Shelf(folder)
    deque(shelf.tensors(), maxlen=0)  # which looks for numbers that are none
    pair = _pair(shelf, auto_class, device)
    listed = batches_to_train(pair.teacher, batches, "the search for a prefix", torch.device("cpu"))
    segment, places = only_segment(pair.teacher, config)
    if not decoders([(segment, places)]):
        return None
    with in_turn(pair, segment):
        return find_prefix(pair.teacher, segment, places, _placed(listed, device), config, progress)


def _pair(shelf: Shelf, auto_class: Any, device: torch.device) -> Pair:
    """Two models of ``shelf`` without memory for weights."""

    def loaded(model: PreTrainedModel, owners: Iterable[nn.Module]) -> AbstractContextManager[None]:
        return shelf.loaded(model, owners, device, torch.float32)

    teacher, student = (skeleton(shelf, auto_class, device) for _ in range(2))
    return Pair(teacher, student, device, loaded)


def _placed(batches: Iterable[Mapping[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    return [
        {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        for batch in batches
    ]


def _write(shelf: Shelf, walk: Walk, kept: Kept, out: Path) -> None:
    """The folder of ``shelf`` with the weights of the QCFS model: a file for each block, and for each weight outside."""
    model = walk.pair.student
    describe(model)
    weights = {file.name for file in shelf.files} | {SAFE_WEIGHTS_INDEX_NAME}
    with whole_folder(out, "the trained blocks are kept") as staged:
        shutil.copytree(shelf.folder, staged, dirs_exist_ok=True, ignore=partial(_left_out, weights))
        mapped: dict[str, str] = {}
        total = 0
        names = {module: name for name, module in model.named_modules()}
        blocks = {names[block]: walk.part(index) for index, block in enumerate(blocks_of(walk.mine))}
        for name, part in blocks.items():
            file = f"{part}.safetensors"
            _link(kept.path(part), staged / file)
            own = model.get_submodule(name).state_dict()
            mapped |= {f"{name}.{leaf}": file for leaf in own}
            total += sum(value.nbytes for value in own.values())
        for number, (name, value) in enumerate(_outside(shelf, model, tuple(blocks), walk.changed)):
            mapped[name] = f"outside-{number}.safetensors"
            total += value.nbytes
            save_file({name: value}, staged / mapped[name], metadata={"format": "pt"})
        index = {"metadata": {"total_size": total}, "weight_map": mapped}
        (staged / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
        model.config.save_pretrained(staged)
        write_manifest(staged)
        write_card(staged, str(shelf.folder))


def _outside(
    shelf: Shelf, model: PreTrainedModel, blocks: tuple[str, ...], changed: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers outside of the ``blocks``, one at a time; of tied ones the one that is stored."""
    for name, value in model.state_dict().items():
        if name.startswith(tuple(f"{block}." for block in blocks)):
            continue
        if name in changed:
            yield name, changed[name].cpu().contiguous()
        elif not value.is_meta and name not in shelf.places:
            yield name, value.detach().cpu().contiguous()
        elif (stored := shelf.name_of(name)) == name or name.endswith(f".{stored}"):
            found = shelf.read(stored)
            yield name, found.float() if found.is_floating_point() else found


def _left_out(weights: set[str], folder: str, names: list[str]) -> list[str]:
    """What of the ANN's folder is not taken along: weights in any format, its card, and what is no file."""
    endings = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".work", ".new")
    unwanted = weights | {CARD}
    return [name for name in names if name in unwanted or name.endswith(endings) or not (Path(folder) / name).is_file()]


def _link(source: Path, target: Path) -> None:
    """The same file twice, or a copy where the disk knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
