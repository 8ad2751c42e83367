"""``fas convert --from-disk``: both stages with one block's weights in memory at a time; nothing is measured."""

from __future__ import annotations

import resource
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, set_seed

from fas import world
from fas.calibration import CalibrationOptions, calibrate_folder
from fas.config import SpikingConfig
from fas.conversion.files import weight_files
from fas.conversion.shelf import Shelf
from fas.errors import CheckpointError, ConfigError
from fas.locks import one_at_a_time
from fas.pipeline.load import (
    READERS,
    auto_class_of,
    original_config,
    pick_device,
    reader_of,
    resolve,
    spiking_config_of,
)
from fas.pipeline.options import ConvertOptions
from fas.pipeline.outliers import described, settled
from fas.pipeline.run import CALIBRATION_BATCH
from fas.pipeline.source import training_of
from fas.pipeline.stages import block_batches, block_options
from fas.progress import Progress
from fas.report.results import Results
from fas.tasks.examples import Examples
from fas.tasks.reading.journal import Reading
from fas.training import prefix_search_from_disk, train_blocks_folder


@one_at_a_time(lambda options: options.out)
def convert_from_disk(options: ConvertOptions, progress: Progress) -> Results:
    """Convert as ``options`` say, a block at a time; the folder appears whole at ``options.out``, and no row is measured.

    Interrupted, the same call goes on from the last finished block. Raises `FasError` kinds for bad input before anything is
    computed.
    """
    start, out = time.time(), options.out
    if out.exists():
        raise ConfigError(f"{out} exists already; give a folder that does not")
    if world.launched()[1] > 1:
        raise ConfigError("from disk one process holds one block at a time; start it without torchrun")
    folder, config = Path(resolve(options.model)), original_config(options.model)
    files = weight_files(folder)  # refuses what is no local checkpoint
    auto_class, device = auto_class_of(config), pick_device(options.device)
    reader = reader_of(folder, READERS.get(auto_class, AutoTokenizer))
    reading = Reading(progress)
    training = training_of(options, config, reader, reading)
    reading.tell()
    set_seed(options.seed)
    sizes = {file.name: file.stat().st_size for file in files}
    asked = options.fingerprint(text=training.digest().hex(), weights=sizes, config=config.to_json_string())
    first = out.with_name(out.name + ".stage1")
    where = {"device": device, "auto_class": auto_class}
    if not (first / "results.json").exists():
        shutil.rmtree(first, ignore_errors=True)
        results = _stage1(options, folder, first, training, reader, progress, where)
        results.extra["asked"] = asked
        results.write(first / "results.json")
    results = Results.read(first / "results.json")
    if results.extra.pop("asked", None) != asked:
        raise CheckpointError(
            f"{first} was made with other arguments; repeat those, choose another --out, or remove it"
        )
    results.extra["data"] = reading.about()
    if options.stage2:
        results.extra["layer_errors"] = _stage2(options, first, out, training, progress, where)
    else:
        first.rename(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    results.extra |= {"seconds": round(time.time() - start, 1), "peak_memory_gib": round(peak, 2)}
    results.write(out / "results.json")
    shutil.rmtree(first, ignore_errors=True)
    return results


def _stage1(
    options: ConvertOptions,
    folder: Path,
    first: Path,
    training: Examples,
    reader: Any,
    progress: Progress,
    where: dict[str, Any],
) -> Results:
    """Scales and, unless ``stage1`` is none, trained blocks in the folder ``first``."""
    batches = training.for_calibration(options.calibration_sequences, CALIBRATION_BATCH)
    asked = options.configurations()[0]
    settled_already = options.prefix != "auto" and None not in (
        options.rotation, options.center, options.neurons_per_channel, options.levels
    )  # fmt: skip
    found = None if settled_already else prefix_search_from_disk(folder, asked, batches, progress, **where)
    tokens = (found.tokens if found is not None else ()) if options.prefix == "auto" else options.prefix
    options = settled(options, found is not None and found.before.is_massive, tokens)
    config = options.configurations()[0]
    settings = block_options(options, parameters_in(folder), len(training))
    reports = train_blocks_folder(
        folder, first, config, block_batches(training, options, settings), settings, progress, stage="snn", **where
    )
    results = Results(options.model, options.data, options.seed)
    results.extra = {"options": {**asdict(options), "out": str(options.out)}, "blocks": [asdict(r) for r in reports]}
    if found is not None and found.before.is_massive:
        results.extra["massive_activations"] = described(found, reader)
    return results


def _stage2(
    options: ConvertOptions, first: Path, out: Path, training: Examples, progress: Progress, where: dict[str, Any]
) -> dict[str, Any]:
    """The neurons of the folder ``first``, calibrated into ``out``; the errors of its layers."""
    model_config = spiking_config_of(str(first))
    config = SpikingConfig.from_dict(model_config.quantization_config["spiking"])
    settings = CalibrationOptions.for_depth(
        model_config.get_text_config().num_hidden_layers,
        fit_steps=options.fit_steps,
        absorb_bias=options.absorb_bias,
        align_steps=options.align_steps,
        global_steps=0,
        spike_price=options.price_of_a_spike,
    )
    batches = training.for_calibration(options.calibration_sequences, CALIBRATION_BATCH)
    reports = calibrate_folder(first, out, batches, settings, progress, **where, **config.model_dump())
    return {config.neuron_key: [vars(report) for report in reports]}


def parameters_in(folder: Path) -> int:
    """Parameters of the checkpoint in ``folder``; none are read."""
    return sum(torch.Size(place.shape).numel() for place in Shelf(folder).places.values())
