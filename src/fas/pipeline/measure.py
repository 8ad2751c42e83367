"""Rows of the result: one model in one form, measured on the evaluation blocks."""

from __future__ import annotations

import time

from torch import Tensor
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.progress import Progress
from fas.report.results import Row
from fas.runtime.control import as_qcfs, at_time, calibrated_keys, clock_of, sites_of
from fas.tasks.language_modeling import Evaluation, evaluate, evaluate_spiking

EVALUATION_BATCH = 16


def dense_row(name: str, model: PreTrainedModel, blocks: Tensor, batch_size: int, progress: Progress) -> Row:
    """The ANN or the control."""
    start = time.time()
    return _row(Row(name), evaluate(model, blocks, batch_size, progress, f"evaluating {name}"), start)


def qcfs_row(model: PreTrainedModel, blocks: Tensor, batch_size: int, progress: Progress) -> Row:
    """The QCFS model inside a prepared or converted model."""
    config, start = clock_of(model).config, time.time()
    with as_qcfs(model):
        measured = evaluate(model, blocks, batch_size, progress, "evaluating QCFS model")
    return _row(Row("qcfs", coverage=config.coverage, levels=config.levels), measured, start)


def spiking_row(
    model: PreTrainedModel, target: SpikingConfig, blocks: Tensor, batch_size: int, progress: Progress
) -> Row:
    """The SNN under ``target``, with its spikes; calibrated neurons are used where the model has them."""
    start = time.time()
    rate = target.coding == "rate"
    label = "layerwise" if not target.folds_time else f"{target.coding} T={target.timesteps}"
    with at_time(model, **target.model_dump()):
        measured = evaluate_spiking(model, blocks, batch_size, progress, f"evaluating SNN, {label}")
    row = Row(
        "snn",
        coding=target.coding if target.folds_time else None,
        rows=target.rows if rate and target.folds_time else None,
        coverage=target.coverage,
        schedule=target.schedule,
        neurons_per_channel=None if rate or not target.folds_time else target.neurons_per_channel,
        steps=None if rate or not target.folds_time else list(target.step_schedule),
        timesteps=target.timesteps,
        levels=target.levels,
        stage2=target.folds_time and target.neuron_key in calibrated_keys(sites_of(model).values()),
    )
    if row.stage2 and not rate:
        row.steps_by_site = {n: [int(k) for k in s.steps_for(target)] for n, s in sites_of(model).items()}
    return _row(row, measured, start)


def layerwise_target(config: SpikingConfig) -> SpikingConfig:
    """The same conversion in the layerwise schedule (T = L)."""
    return config.replaced(schedule="layerwise", timesteps=config.levels)


def _row(row: Row, measured: Evaluation, start: float) -> Row:
    row.metric, row.value = "perplexity", measured.perplexity
    row.perplexity, row.loss, row.tokens = measured.perplexity, measured.loss, measured.tokens
    row.seconds = round(time.time() - start, 2)
    if measured.spikes is not None:
        row.spikes_per_neuron = measured.spikes.per_neuron
        row.by_site = {name: count.per_neuron for name, count in measured.spikes.sites.items()}
    return row
