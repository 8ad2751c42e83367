"""``fas calibrate``: neurons for other codings and timesteps in a folder that was converted already."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from fas import world
from fas.calibration import CalibrationOptions, LayerReport, calibrate, calibrate_folder
from fas.calibration.kept import file_name
from fas.config import SpikingConfig
from fas.conversion.files import weight_files
from fas.conversion.shelf import without_weights
from fas.errors import ConfigError
from fas.locks import one_at_a_time
from fas.pipeline.asked import as_converted, results_of
from fas.pipeline.load import auto_class_of, load_spiking, pick_device, reader_of, spiking_config_of
from fas.pipeline.run import batches_on
from fas.pipeline.source import training_of
from fas.progress import Progress
from fas.runtime.control import calibrated_keys, clock_of, sites_of
from fas.runtime.replay import number_of_layers
from fas.storage import whole_folder
from fas.tasks.reading.journal import Reading

BATCH = 4


@dataclass(frozen=True)
class CalibrateOptions:
    """What ``fas calibrate`` is asked; see its flags."""

    folder: str
    data: str | None
    out: Path
    timesteps: tuple[int, ...] = (8,)
    codings: tuple[str, ...] = ()
    calibration_sequences: int | None = None
    fit_steps: int | None = None
    absorb_bias: bool = False
    align_steps: int = 0
    global_steps: int = 0
    length: int | None = None
    from_disk: bool = False
    seed: int = 0
    device: str = "auto"

    def settings(self, layers: int) -> CalibrationOptions:
        """What Stage 2 of a network of so many ``layers`` is told."""
        steps = 0 if self.from_disk else self.global_steps
        return CalibrationOptions.for_depth(
            layers,
            fit_steps=self.fit_steps,
            absorb_bias=self.absorb_bias,
            align_steps=self.align_steps,
            global_steps=steps,
        )


@one_at_a_time(lambda options: options.out)
def calibrate_again(options: CalibrateOptions, progress: Progress) -> dict[str, list[LayerReport]]:
    """Calibrate for every coding and number of timesteps, in memory or a block at a time; reports by `neuron_key`.

    ``options.out`` appears whole. Interrupted, the same call goes on from the last finished layer. Raises `FasError` kinds for
    bad input before anything is computed.
    """
    if options.out.exists():
        raise ConfigError(f"{options.out} exists already; give a folder that does not")
    set_seed(options.seed)
    return _from_disk(options, progress) if options.from_disk else _in_memory(options, progress)


def _in_memory(options: CalibrateOptions, progress: Progress) -> dict[str, list[LayerReport]]:
    model, tokenizer = load_spiking(options.folder, options.device, any_task=True)
    batches = _batches(options, tokenizer, model.config, model.device, progress)
    config, known = clock_of(model).config, calibrated_keys(sites_of(model).values())
    targets = _targets(options, config)
    again = [target.neuron_key for target in targets if target.neuron_key in known]
    if again:
        raise ConfigError(f"{options.folder} is calibrated for {', '.join(again)} already; choose other timesteps")
    work = options.out.with_name(options.out.name + ".work")
    settings = options.settings(number_of_layers(model))
    reports: dict[str, list[LayerReport]] = {}
    for target in targets:
        model.set_timesteps(**target.model_dump())
        layers = work / file_name(target.neuron_key)
        reports[target.neuron_key] = calibrate(model, batches, settings, progress, layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing runs in this time here
        model.set_timesteps(**config.model_dump())
    world.once(lambda: _write(options, model, tokenizer, work))
    return reports


def _write(options: CalibrateOptions, model: PreTrainedModel, tokenizer: Any, work: Path) -> None:
    control, results = (Path(options.folder) / name for name in ("control", "results.json"))
    with whole_folder(options.out, "the calibrated layers are kept") as staged:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        if control.exists():  # as from disk: what ratios are against
            shutil.copytree(control, staged / "control")
        if results.exists():  # what it was converted from, and for which task
            shutil.copy(results, staged)
    shutil.rmtree(work, ignore_errors=True)


def _from_disk(options: CalibrateOptions, progress: Progress) -> dict[str, list[LayerReport]]:
    if world.launched()[1] > 1:
        raise ConfigError("from disk one process holds one block at a time; start it without torchrun")
    if len(options.timesteps) * max(1, len(options.codings)) > 1:
        raise ConfigError("from disk one coding and one number of timesteps are calibrated at a time; give one of each")
    folder = Path(options.folder)
    weight_files(folder)  # refuses what is no local checkpoint
    model_config = spiking_config_of(options.folder)
    tokenizer = reader_of(folder)
    (target,) = _targets(options, SpikingConfig.from_dict(model_config.quantization_config["spiking"]))
    device = pick_device(options.device)
    batches = _batches(options, tokenizer, model_config, device, progress)
    time, auto_class = target.model_dump(), auto_class_of(model_config)
    layers = number_of_layers(without_weights(folder, auto_class, device))
    return {
        target.neuron_key: calibrate_folder(
            folder,
            options.out,
            batches,
            options.settings(layers),
            progress,
            device=device,
            auto_class=auto_class,
            **time,
        )
    }


def _targets(options: CalibrateOptions, config: SpikingConfig) -> list[SpikingConfig]:
    codings = options.codings or (config.coding,)
    asked = dict.fromkeys((coding, steps) for coding in codings for steps in options.timesteps)
    if not asked:
        raise ConfigError("no timesteps were given; say for which, e.g. --timesteps 2,4")
    return [config.replaced(coding=c, timesteps=steps, schedule="synchronous") for c, steps in asked]


def _batches(
    options: CalibrateOptions, tokenizer: Any, config: Any, device: torch.device, progress: Progress
) -> list[dict[str, Any]]:
    """Evenly spaced training examples, in batches small enough for T·B rows."""
    asked = {"data": options.data, "length": options.length}
    reading = Reading(progress)
    training = training_of(as_converted(options.folder, results_of(options.folder), asked), config, tokenizer, reading)
    reading.tell()
    return batches_on(device, training.for_calibration(options.calibration_sequences, BATCH))
