"""``fas eval``: the ANN, the control, the QCFS model and the SNN of a converted folder side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from fas.calibration import diagnose
from fas.config import SpikingConfig
from fas.errors import ConfigError, FasError
from fas.pipeline.asked import as_converted, named, results_of
from fas.pipeline.load import READERS, auto_class_of, load_ann, load_spiking, reader_of, spiking_config_of
from fas.pipeline.measure import (
    EVALUATION_BATCH,
    Stopping,
    as_tuned,
    dense_row,
    layerwise_target,
    probabilities,
    qcfs_row,
    spiking_row,
    stoppings,
    with_integers,
)
from fas.pipeline.outliers import with_prefix
from fas.pipeline.source import evaluation_of, sliding_of
from fas.progress import Progress, Silent
from fas.report.results import Results, Row
from fas.runtime.accelerated import integer_paths
from fas.runtime.control import at_time, calibrated_keys, clock_of, sites_of
from fas.tasks.examples import Examples, Scored
from fas.tasks.reading.journal import Reading

DIAGNOSIS_BATCH = 4


def evaluate_folder(
    folder: Path,
    data: str | None = None,
    *,
    eval_data: str | None = None,
    columns: Sequence[str | None] = (None, None, None),
    timesteps: Sequence[int] | None = None,
    codings: Sequence[str] | None = None,
    layerwise: bool = False,
    eval_sequences: int | None = None,
    batch_size: int | None = None,
    length: int | None = None,
    stride: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str | None = None,
    diagnosed: int = 0,
    adaptive: bool = False,
    confidences: Sequence[float] = (),
    memory_limit: int | str | None = None,
    integer_bits: int = 0,
    progress: Progress | None = None,
) -> Results:
    """Measure every form of ``folder`` on the evaluation part of ``data`` (None: what it was converted with).

    ``columns``: text, pair and label of labelled texts, where they are not those of the conversion.

    Without ``timesteps`` and ``codings`` all that the folder was calibrated for is measured; else each timestep is crossed
    with each coding. On the text of the conversion the same blocks are measured as then. The ANN is measured if the
    model it came from can be loaded; else its stored row is shown, marked so. ``diagnosed`` sequences say where the temporal
    error is (``extra["diagnosis"]``, by coding and time). ``adaptive`` adds rows in which each sequence stops by itself, when
    settled or at one of ``confidences`` (0 to 1, which imply it). ``stride`` moves a window of ``length`` over the whole text,
    or over ``eval_sequences`` documents of it (`fas.tasks.sliding`). ``memory_limit``: `fas.memory_limit`, of every form;
    ``integer_bits``: of weights that spikes are multiplied with (`fas.accelerated`), 0: as they are.
    Raises `ConfigError` where none could, `CheckpointError` if ``folder`` is not a converted model and `DataError` for too
    little text.
    """
    progress, batch, folder = progress or Silent(), batch_size or EVALUATION_BATCH, Path(folder)
    saved, stored = spiking_config_of(str(folder)), results_of(folder)
    asked = {"data": data, "eval_data": eval_data, "length": length, "eval_sequences": eval_sequences}
    options = as_converted(folder, stored, asked | named(columns))
    tokenizer, reading = reader_of(folder, READERS.get(auto_class_of(saved), AutoTokenizer)), Reading(progress)
    blocks = evaluation_of(options, saved, tokenizer, reading)  # refused, if it is, before weights are loaded
    reading.tell()
    examples = blocks if stride is None else sliding_of(options, saved, tokenizer, stride, eval_sequences)
    model, _ = load_spiking(str(folder), device, dtype, any_task=True)
    config = clock_of(model).config
    targets = targets_of(model, config, timesteps, codings)
    plan = _adaptive_plan(targets, confidences, progress) if adaptive or confidences else {}
    text = {"data": options.data, "eval_data": options.eval_data, **examples.about()}
    precision, integers = str(model.dtype).removeprefix("torch."), with_integers(model, integer_bits)
    same_text = stored is not None and stored.extra.get("evaluation") == text
    rows = dense_rows(folder, stored, same_text, examples, batch, device, precision, progress, memory_limit, config)
    extra = {"evaluation": text, "data": reading.about(), "dtype": precision} | (
        {"integer_bits": integer_bits} if integer_bits else {}
    )
    found = Results(str(folder), options.eval_data or options.data, seed, rows, extra=extra)
    rows.append(qcfs_row(model, examples, batch, progress, memory_limit))
    with integers:
        if layerwise:
            rows.append(spiking_row(model, layerwise_target(config), examples, batch, progress, limit=memory_limit))
        for target in targets:
            if target.neuron_key not in _calibrated(model):
                progress.note(f"no calibrated neurons for {target.neuron_key}; uncalibrated ones are measured")
            rows.append(spiking_row(model, target, examples, batch, progress, limit=memory_limit))
            for stopping in plan.get(target, ()):
                rows.append(spiking_row(model, target, examples, batch, progress, stopping, memory_limit))
        if integer_bits:
            found.extra["integer_products"] = integer_paths(model)
    if diagnosed:
        found.extra["diagnosis"] = diagnoses(model, targets, blocks.some(diagnosed), progress)
    if stored is not None and (tuning := stored.extra.get("tuning")):
        found.rows, found.extra["tuning"] = [as_tuned(row) for row in rows], tuning
    return found


def _adaptive_plan(
    targets: Sequence[SpikingConfig], confidences: Sequence[float], progress: Progress
) -> dict[SpikingConfig, list[Stopping]]:
    """How sequences stop in each of ``targets``; raises `ConfigError` before anything is measured."""
    probabilities(confidences)
    plan = {target: stoppings(target.coding, confidences) for target in targets if target.folds_time}
    if not any(plan.values()):
        raise ConfigError(
            f"nothing in {', '.join(target.neuron_key for target in targets)} can stop early: rate-coded means never settle "
            "and the layerwise schedule has no time; give --confidence, or --coding sigma_delta"
        )
    for target in targets:
        if not plan.get(target):
            progress.note(f"{target.neuron_key} never settles, so it has no adaptive row; give --confidence")
    return plan


def diagnoses(
    model: PreTrainedModel, targets: Sequence[SpikingConfig], examples: Examples, progress: Progress
) -> dict[str, Any]:
    """`diagnose` of ``model`` on ``examples`` for each of ``targets`` that has a temporal error, by `neuron_key`."""
    progress.start("diagnosing", len(targets))
    found: dict[str, Any] = {}
    batches = [
        {name: value.to(model.device) for name, value in batch.items()} for batch in examples.unpadded(DIAGNOSIS_BATCH)
    ]
    for target in targets:
        if not target.folds_time:
            progress.note(f"{target.neuron_key} is layerwise: it has no temporal error")
            continue
        with at_time(model, **target.model_dump()):
            found[target.neuron_key] = diagnose(model, batches).to_dict()
        progress.advance()
    progress.done()
    return found


def _calibrated(model: PreTrainedModel) -> list[str]:
    return calibrated_keys(sites_of(model).values())


def targets_of(
    model: PreTrainedModel, config: SpikingConfig, timesteps: Sequence[int] | None, codings: Sequence[str] | None
) -> list[SpikingConfig]:
    """Each timestep crossed with each coding; without either, everything that the folder was calibrated for."""
    known = _calibrated(model)
    if not timesteps and not codings:
        return [config.for_key(key) for key in known] or [config]
    return [
        config.replaced(coding=coding, timesteps=count).closest(known)
        for coding in codings or (config.coding,)
        for count in timesteps or (config.timesteps,)
    ]


def dense_rows(
    folder: Path,
    stored: Results | None,
    same_text: bool,
    examples: Scored,
    batch: int,
    device: str,
    precision: str,
    progress: Progress,
    memory_limit: int | str | None = None,
    config: SpikingConfig | None = None,
) -> list[Row]:
    """The ANN and, where ``config`` has one, the ANN with the prefix; and the control.

    The ANN is measured where it can be loaded, else its row is the stored one if that was on the same text. An ANN that had
    yet to learn its task has no row.
    """
    rows: list[Row] = []
    if stored is not None and any(row.name == "ann" for row in stored.rows):
        try:
            ann, _ = load_ann(stored.model, device, precision, any_task=True)
        except FasError as error:
            progress.note(f"the original model is not at hand ({error})")
            rows += [replace(row, stored=True) for row in stored.rows if row.name == "ann" and same_text]
        else:
            rows.append(dense_row("ann", ann, examples, batch, progress, memory_limit))
            if config is not None and config.prefix:  # a part of what differs is the prefix, not the spikes
                prefixed = with_prefix(ann, config)
                rows.append(dense_row("ann+prefix", prefixed, examples, batch, progress, memory_limit))
    if (folder / "control").exists():
        control, _ = load_ann(str(folder / "control"), device, precision, any_task=True)
        rows.append(dense_row("control", control, examples, batch, progress, memory_limit))
    else:
        progress.note(f"{folder} has no control beside it; ratios are against the ANN")
    return rows
