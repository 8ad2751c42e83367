"""``fas tune``: some steps of training for a converted model, through its own simulated time. The paper freezes the weights."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from fas.config import SpikingConfig
from fas.conversion.card import write_card
from fas.errors import ConfigError, FasError
from fas.locks import one_at_a_time
from fas.pipeline.evaluate import dense_rows
from fas.pipeline.load import block_length, load_ann, load_spiking
from fas.pipeline.measure import EVALUATION_BATCH, as_tuned, dense_row, qcfs_row, spiking_row
from fas.progress import Progress
from fas.report.card import measured_lines
from fas.report.results import Results, Row
from fas.runtime.control import calibrated_keys, clock_of, sites_of
from fas.storage import whole_folder
from fas.tasks.language_modeling import Blocks, encode_blocks, spread
from fas.tasks.reading.journal import Reading
from fas.tasks.text import load_text
from fas.training import Stage1Options, tune_through_time

SMALL_MODEL, LR_OF_SMALL, LR = 20_000_000, 1e-4, 1e-5
"""Half of Stage 1's learning rates, by the number of parameters."""
NEURONS_LR = 10
"""θ and v₀ move so many times as fast as the weights: at 1e-4 as fast as sigma-delta neurons in Stage 2's global pass."""


@dataclass(frozen=True)
class TuneOptions:
    """What ``fas tune`` is asked; see its flags. Raises `ConfigError` for a value out of range."""

    folder: str
    data: str
    out: Path
    timesteps: int | None = None
    coding: str | None = None
    steps: int = 100
    lr: float | None = None
    batch_size: int = 8
    length: int | None = None
    distill: float | None = None
    teacher: str | None = None
    eval_data: str | None = None
    eval_sequences: int | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("timesteps", 1), ("steps", 1), ("batch_size", 1), ("length", 2), ("eval_sequences", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} is not valid: it must be at least {least}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ConfigError(f"lr={self.lr} is not valid: a learning rate is above 0, such as 1e-4")
        if self.distill is not None and not 0 <= self.distill <= 1:
            raise ConfigError(
                f"distill={self.distill} is not valid: the weight of the distillation loss is between 0 and 1"
            )


@dataclass(frozen=True)
class _Ready:
    """Loaded and checked, nothing computed yet. Blocks are ``[N, S]``."""

    options: TuneOptions
    stored: Results | None
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    target: SpikingConfig
    training: Tensor
    evaluation: Tensor
    settings: Stage1Options
    teacher: PreTrainedModel | None
    taught_by: str | None
    reading: Reading


@one_at_a_time(lambda options: options.out)
def tune_folder(options: TuneOptions, progress: Progress) -> Results:
    """Tune weights and neurons of ``options.folder`` at one coding and time; the folder appears whole at ``options.out``.

    Rows: ANN and control (the teacher, where another was given), then the QCFS model and the SNN before tuning, and both after
    it with ``tuned``. The first QCFS row is what Stage 2 calibrated to; the tuned one is what the tuned weights give without
    time (λ is Stage 1's still), so that one sees whether tuning mended time or the weights. Trained is on the training part of
    the text alone. Nothing is kept of an interrupted tuning. Raises `FasError` kinds for bad input before anything is computed.
    """
    if options.out.exists():
        raise ConfigError(f"{options.out} exists already; give a folder that does not")
    set_seed(options.seed)
    ready, start = _ready(options, progress), time.time()
    model, dtype = ready.model, ready.model.dtype
    rows = [*_references(ready, progress), *_rows(ready, progress)]
    model.to(torch.float32)  # type: ignore[arg-type]  # small steps are lost in bf16
    dropped = tune_through_time(model, Blocks(ready.training), ready.settings, ready.teacher, progress)
    if dropped:
        progress.note(
            f"neurons of {', '.join(dropped)} are left out: they were calibrated to the weights before tuning"
        )
    model.to(dtype)  # type: ignore[arg-type]
    rows += [as_tuned(row) for row in _rows(ready, progress)]
    progress.note(f"the control did not have these {options.steps} steps; the paper freezes the weights after Stage 1")
    results = _results(ready, rows, dropped)
    results.extra["seconds"] = round(time.time() - start, 1)
    _write(ready, results)
    return results


def _ready(options: TuneOptions, progress: Progress) -> _Ready:
    folder = Path(options.folder)
    model, tokenizer = load_spiking(options.folder, options.device)
    stored = Results.read(folder / "results.json") if (folder / "results.json").exists() else None
    if stored is not None and (tuning := stored.extra.get("tuning")):
        raise ConfigError(
            f"{folder} was tuned already, for {tuning['steps']} steps; tune what it came from ({tuning['from']}) with more "
            "--steps"
        )
    target = _target(options, clock_of(model).config, calibrated_keys(sites_of(model).values()))
    model.set_timesteps(**target.model_dump())
    then = stored.extra.get("options", {}) if stored else {}
    if options.data == then.get("data"):  # the text of the conversion, divided as it was then
        options = replace(
            options,
            eval_data=options.eval_data or then.get("eval_data"),
            length=options.length or then.get("length"),
            eval_sequences=options.eval_sequences or then.get("eval_sequences"),
        )
    length, reading = block_length(model.config, options.length), Reading(progress)
    text = load_text(options.data, options.eval_data, tokenizer, reading)
    reading.tell()
    training = encode_blocks(tokenizer, text.training, length, "training text")
    evaluation = encode_blocks(tokenizer, text.evaluation, length, "evaluation text")
    settings = _settings(options, model, stored)
    teacher, name = _teacher(options, model, stored) if settings.distill else (None, None)
    return _Ready(
        options, stored, model, tokenizer, target, training, spread(evaluation, options.eval_sequences), settings, teacher,
        name, reading,
    )  # fmt: skip


def _target(options: TuneOptions, config: SpikingConfig, known: list[str]) -> SpikingConfig:
    """The one coding and time that is tuned, which must be calibrated."""
    coding, timesteps = options.coding or config.coding, options.timesteps or config.timesteps
    target = config.replaced(coding=coding, timesteps=timesteps, schedule="synchronous").closest(known)
    if target.neuron_key not in known:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ConfigError(
            f"{options.folder} has no calibrated neurons for {coding} at T={timesteps} ({has}); choose another --coding and "
            f"--timesteps, or first: fas calibrate {options.folder} --data {options.data} --coding {coding} "
            f"--timesteps {timesteps} --out DIR"
        )
    return target


def _settings(options: TuneOptions, model: PreTrainedModel, stored: Results | None) -> Stage1Options:
    """As Stage 1: distil only where the task loss on this text made the control worse than the ANN."""
    lr = options.lr if options.lr is not None else (LR_OF_SMALL if model.num_parameters() < SMALL_MODEL else LR)
    chosen = stored.extra.get("control", {}).get("chosen") if stored else None
    usual = 1.0 if chosen == "ann" else 0.5
    return Stage1Options(
        steps=options.steps,
        batch_size=options.batch_size,
        lr=lr,
        scale_lr=NEURONS_LR * lr,
        distill=usual if options.distill is None else options.distill,
        seed=options.seed,
    )


def _teacher(options: TuneOptions, model: PreTrainedModel, stored: Results | None) -> tuple[PreTrainedModel, str]:
    """What was given, else the control in the folder, else the ANN that it came from; and its name."""
    control = Path(options.folder) / "control"
    name = options.teacher or (str(control) if control.exists() else stored.model if stored else None)
    if name is None:
        raise ConfigError(f"{options.folder} has no control and no results.json to distil from; give --teacher MODEL")
    try:
        teacher, _ = load_ann(name, options.device)
    except FasError as error:
        raise FasError(f"the teacher is not at hand ({error}); give --teacher MODEL, or --distill 0") from None
    words, own = (m.config.get_text_config().vocab_size for m in (teacher, model))
    if words != own:
        raise ConfigError(
            f"the teacher {name} has {words} tokens and {options.folder} has {own}; give one with the same"
        )
    return teacher, name


def _references(ready: _Ready, progress: Progress) -> list[Row]:
    """ANN and control as ``fas eval`` measures them, and a teacher that is neither."""
    options, examples = ready.options, Blocks(ready.evaluation)
    precision = str(ready.model.dtype).removeprefix("torch.")
    same = ready.stored is not None and ready.stored.extra.get("evaluation") == _evaluation(ready)
    rows = dense_rows(
        Path(options.folder), ready.stored, same, examples, EVALUATION_BATCH, options.device, precision, progress
    )
    if options.teacher is not None and ready.teacher is not None:
        rows.append(dense_row("teacher", ready.teacher, examples, EVALUATION_BATCH, progress))
    return rows


def _rows(ready: _Ready, progress: Progress) -> list[Row]:
    """The model as it is now, without time and in its time."""
    examples = Blocks(ready.evaluation)
    return [
        qcfs_row(ready.model, examples, EVALUATION_BATCH, progress),
        spiking_row(ready.model, ready.target, examples, EVALUATION_BATCH, progress),
    ]


def _evaluation(ready: _Ready) -> dict[str, Any]:
    options, blocks = ready.options, ready.evaluation
    return {
        "data": options.data, "eval_data": options.eval_data, "length": blocks.shape[1], "sequences": len(blocks),
    }  # fmt: skip


def _results(ready: _Ready, rows: list[Row], dropped: list[str]) -> Results:
    options, stored, settings = ready.options, ready.stored, ready.settings
    found = Results(stored.model if stored else options.folder, options.data, options.seed, rows)
    found.extra["tuning"] = {
        "from": options.folder, "neurons": ready.target.neuron_key, "steps": settings.steps, "lr": settings.lr,
        "neurons_lr": settings.scale_lr, "batch_size": settings.batch_size, "length": ready.training.shape[1],
        "distill": settings.distill, "teacher": ready.taught_by, "steps_of_the_control": 0, "left_out": dropped,
    }  # fmt: skip
    if stored is not None and "control" in stored.extra:
        found.extra["control"] = stored.extra["control"]
    found.extra["options"] = {**asdict(options), "out": str(options.out)}
    found.extra["evaluation"], found.extra["data"] = _evaluation(ready), ready.reading.about()
    return found


def _write(ready: _Ready, results: Results) -> None:
    """Model, control and results, in a folder beside that is renamed."""
    options, out, control = ready.options, ready.options.out, Path(ready.options.folder) / "control"
    with whole_folder(out) as staged:
        ready.model.save_pretrained(staged)
        ready.tokenizer.save_pretrained(staged)
        if control.exists():
            shutil.copytree(control, staged / "control")
        results.write(staged / "results.json")
        write_card(staged, options.folder, measured_lines(results))
