"""Stage 2 of a model that does not fit into memory: one block's weights at a time, hidden states before it in files.

There is no global pass, for that would need all of the weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from fas.calibration.block import LayerReport, calibrate_block
from fas.calibration.driver import described
from fas.calibration.kept import KeptLayers, file_name
from fas.calibration.options import CalibrationOptions
from fas.conversion import describe
from fas.conversion.card import write_card
from fas.conversion.kept import fingerprint_of
from fas.conversion.manifest import write_manifest
from fas.conversion.shelf import Shelf, without_weights
from fas.errors import ConfigError, FasError
from fas.given import Batches, batches_for, class_from, device_from, folder_from, options_from
from fas.models import Segment, find_segments
from fas.neurons import Site
from fas.progress import Progress, progress_from
from fas.runtime.control import calibrated_keys, clock_of, sites_of
from fas.runtime.memory import return_freed_memory
from fas.runtime.replay import Stream, blocks_of, both_streams, number_of_layers
from fas.sections import Reports
from fas.storage import whole_folder


def calibrate_folder(
    folder: Path | str,
    out: Path | str,
    batches: Batches,
    options: CalibrationOptions | Mapping[str, Any] | None = None,
    progress: Progress | bool | None = None,
    *,
    device: torch.device | str = "cpu",
    auto_class: Any = AutoModelForCausalLM,
    **time: Any,
) -> Reports[LayerReport]:
    """Calibrate the converted model in ``folder`` for ``time`` (arguments of `set_timesteps`) into the new folder ``out``.

    As `calibrate` without its global pass and its search of schedules by depth; in memory are the weights of one block, what
    runs in front of the first one (the embedding) while that is recorded, one batch of hidden states, and the tokens that sites
    are fitted on. ``auto_class`` is the class that loads the folder. Finished layers are kept in ``out``.work; the same call
    goes on after an interruption and ends the same, bit for bit. Raises `CheckpointError` for a folder that cannot be read a
    block at a time or whose weights are not finite, `ConfigError` if ``out`` exists or the model is calibrated for that time
    already, `DataError` without batches, and `FasError` for a model of several parts.
    """
    progress = progress_from(progress)
    given = options_from(options, CalibrationOptions, "fas.calibrate_folder")
    out, device = folder_from(out, "out", "fas.calibrate_folder"), device_from(device, "fas.calibrate_folder")
    class_from(auto_class, "fas.calibrate_folder")
    folder = folder_from(folder, "folder", "fas.calibrate_folder")
    if out.exists():
        raise ConfigError(f"{out} exists already; give a folder that does not")
    if out.resolve().is_relative_to(Path(folder).resolve()):
        raise ConfigError(f"{out} lies inside {folder}, all of which it will hold; give a folder outside")
    shelf, model = Shelf(folder), without_weights(folder, auto_class, device)
    listed = batches_for(model, batches, "fas.calibrate_folder", torch.device("cpu"), whole=True)
    options = _by_block(given or CalibrationOptions.for_depth(number_of_layers(model)), progress)
    clock = clock_of(model)
    converted_for = clock.config
    model.set_timesteps(**time)  # type: ignore[operator]
    key = clock.config.neuron_key
    _require(model, key)
    (segment,) = find_segments(model)
    fingerprint = fingerprint_of(shelf.tensors(), listed, options, key)  # refused before anything is written
    work = out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    kept = KeptLayers(work / "layers", fingerprint)
    blocks = blocks_of(segment)
    progress.start(f"Stage 2 from disk, {described(clock.config)}", len(blocks) * (1 + options.align_steps))
    reports: Reports[LayerReport] = Reports()
    with ExitStack() as stack:
        spiking, targets = _streams(stack, model, segment, shelf, listed, work, device, options.walked_tokens)
        for index, block in enumerate(blocks):
            with shelf.loaded(model, block.modules(), device):
                for site in block.modules():
                    if isinstance(site, Site) and site.calibrates:
                        site.add_parameters(key)
                name = f"{segment.name}.{index}"
                reports.append(calibrate_block(model, block, index, name, spiking, targets, options, progress, kept))
            return_freed_memory()
    values = _neurons(shelf, model, key, device)
    clock.config = converted_for
    _write(shelf, model, key, values, out)
    shutil.rmtree(work)
    progress.done(f"calibrated a block at a time into {out}")
    return reports


def _by_block(options: CalibrationOptions, progress: Progress) -> CalibrationOptions:
    """The part of ``options`` that needs one block at a time; what is left out is said."""
    if options.global_steps:
        progress.note("no global pass: it would need all weights at once")
    if options.settle:
        progress.note(
            "a deep network: each layer is searched by itself; no search of step schedules by depth, it would need all weights "
            "at once"
        )
    return replace(options, global_steps=0, settle=False)


def _require(model: PreTrainedModel, key: str) -> None:
    """Refuse what cannot be done a block at a time, or need not be."""
    if not clock_of(model).folds:
        raise FasError("Stage 2 calibrates time: give a converted model and schedule='synchronous'")
    if key in calibrated_keys(sites_of(model).values()):
        raise ConfigError(f"the model is calibrated for {key} already; choose another coding or number of timesteps")
    segments = find_segments(model)
    if len(segments) != 1:
        names = ", ".join(segment.name for segment in segments)
        raise FasError(
            f"{type(model).__name__} spikes in several parts ({names}); calibrate it in memory (fas.calibrate)"
        )


def _streams(
    stack: ExitStack,
    model: PreTrainedModel,
    segment: Segment,
    shelf: Shelf,
    batches: list[dict[str, Any]],
    work: Path,
    device: torch.device,
    tokens: int | None,
) -> tuple[list[Stream], list[Stream]]:
    """The spiking stream and its target before the first block, batch by batch, in files."""
    blocks = blocks_of(segment)
    inside = {id(module) for block in blocks for module in block.modules()}
    front = [module for module in segment.module.modules() if id(module) not in inside]
    with shelf.loaded(model, [*front, *blocks[0].modules()], device):
        for site in blocks[0].modules():
            if isinstance(site, Site) and site.calibrates:
                site.add_parameters(clock_of(model).config.neuron_key)
        placed = [
            {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            for batch in batches
        ]
        return both_streams(stack, model, segment, placed, device, work, tokens)


def _neurons(shelf: Shelf, model: PreTrainedModel, key: str, device: torch.device) -> dict[str, Tensor]:
    """The parameters for ``key`` of all sites, by the names of a checkpoint."""
    values: dict[str, Tensor] = {}
    for name, site in model.named_modules():
        if isinstance(site, Site) and site.calibrates:
            if key not in site.neurons:  # outside of the blocks
                with shelf.loaded(model, site.modules(), device):
                    site.add_parameters(key)
            entry = site.neurons[key].state_dict()
            values |= {
                f"{name}.neurons.{key}.{leaf}": value.detach().cpu().contiguous() for leaf, value in entry.items()
            }
    return values


def _write(shelf: Shelf, model: PreTrainedModel, key: str, values: dict[str, Tensor], out: Path) -> None:
    """The folder of ``shelf`` and, in a file of their own, the neurons for ``key``."""
    describe(model)
    with whole_folder(out, "the calibrated layers are kept") as staged:
        shutil.copytree(shelf.folder, staged, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.work", "*.new"))
        if (staged / SAFE_WEIGHTS_NAME).exists():  # transformers would read it alone
            (staged / SAFE_WEIGHTS_NAME).rename(staged / "weights.safetensors")
        mapped = {
            name: place.file.name.replace(SAFE_WEIGHTS_NAME, "weights.safetensors")
            for name, place in shelf.places.items()
        }
        added = f"neurons-{file_name(key)}.safetensors"
        save_file(values, staged / added, metadata={"format": "pt"})
        total = sum(place.bytes for place in shelf.places.values()) + sum(v.nbytes for v in values.values())
        index = {"metadata": {"total_size": total}, "weight_map": mapped | dict.fromkeys(values, added)}
        (staged / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
        model.config.save_pretrained(staged)
        write_manifest(staged)
        write_card(staged, str(shelf.folder))
