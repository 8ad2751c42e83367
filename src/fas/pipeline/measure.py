"""Rows of the result: one model in one form, measured on the evaluation examples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.errors import ConfigError
from fas.progress import Progress
from fas.report.results import Row
from fas.runtime.accelerated import accelerated, refuse_bits
from fas.runtime.adaptive import Adaptive, adaptive
from fas.runtime.control import as_qcfs, at_time, calibrated_keys, clock_of, sites_of
from fas.runtime.limit import memory_limit
from fas.tasks.examples import Evaluation, Scored
from fas.tasks.glue import VISUAL

EVALUATION_BATCH, USUAL_LENGTH = 16, 256


def evaluation_batch(length: int) -> int:
    """Blocks of ``length`` tokens that are measured at once: where they are long, as many tokens as in 16 of 256, whose logits
    are what fills the memory.

    >>> evaluation_batch(128), evaluation_batch(1024), evaluation_batch(16384)
    (16, 4, 1)
    """
    return max(1, min(EVALUATION_BATCH, EVALUATION_BATCH * USUAL_LENGTH // length))


def labelled_batch(task: str, on_gpu: bool) -> int:
    """Labelled examples that are measured at once. Texts are short, and a GPU would wait for launches where it has few; images
    with text bring the logits of their image tokens.

    >>> labelled_batch("sst2", True), labelled_batch("sst2", False), labelled_batch("vqa", True)
    (128, 16, 16)
    """
    return EVALUATION_BATCH * (8 if on_gpu and task not in VISUAL else 1)


@dataclass(frozen=True)
class Stopping:
    """What lets a sequence stop before T: arguments of `fas.adaptive`."""

    settled: bool
    confidence: float | None = None

    @property
    def label(self) -> str:
        """In a few words."""
        sure = [] if self.confidence is None else [f"{self.confidence:g} confident"]
        return " or ".join(["settled"] * self.settled + sure)


def stoppings(coding: str, confidences: Sequence[float]) -> list[Stopping]:
    """The ways to stop that ``coding`` knows: settled (sigma_delta), and each of ``confidences`` if that comes first."""
    settles = coding == "sigma_delta"
    return [Stopping(True)] * settles + [Stopping(settles, confidence) for confidence in confidences]


def probabilities(confidences: Sequence[float]) -> Sequence[float]:
    """``confidences`` themselves; raises `ConfigError` for one that no readout could have."""
    if wrong := [confidence for confidence in confidences if not 0 <= confidence <= 1]:
        raise ConfigError(f"confidence={wrong[0]} is no probability; give one from 0 to 1, such as 0.9")
    return confidences


def chosen_stopping(model: PreTrainedModel, confidence: float | None) -> Stopping:
    """Settled where the coding of ``model`` settles, and ``confidence`` if it is given; `fas.adaptive` refuses neither."""
    probabilities(() if confidence is None else [confidence])
    return Stopping(confidence is None or clock_of(model).config.coding == "sigma_delta", confidence)


def stops_early(model: PreTrainedModel, stopping: Stopping | None) -> AbstractContextManager[Adaptive | None]:
    """`fas.adaptive` as ``stopping`` says; without it all T run."""
    if stopping is None:
        return nullcontext(None)
    return adaptive(model, settled=stopping.settled, confidence=stopping.confidence)


def limited(model: PreTrainedModel, limit: int | str | None) -> AbstractContextManager[Any]:
    """`fas.memory_limit`, if there is a limit."""
    return nullcontext(model) if limit is None else memory_limit(model, limit)


def with_integers(model: PreTrainedModel, bits: int) -> AbstractContextManager[Any]:
    """`fas.accelerated` for many rows, if ``bits`` of weights are asked for; raises at once what that raises, and `ConfigError`
    where it would do nothing."""
    refuse_bits(model, bits)
    if not bits:
        return nullcontext(model)
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        kind = f"{str(model.dtype).removeprefix('torch.')} on {model.device.type}"
        raise ConfigError(
            f"integer_bits={bits} is for float32 and bfloat16 on a CPU, and this model is {kind}; leave it out"
        )
    return accelerated(model, bits)


def dense_row(
    name: str,
    model: PreTrainedModel,
    examples: Scored,
    batch_size: int,
    progress: Progress,
    limit: int | str | None = None,
) -> Row:
    """The ANN or the control; ``limit``, here and in other rows: what activations may take (`fas.memory_limit`)."""
    start = time.time()
    with limited(model, limit):
        measured = examples.evaluate(model, batch_size, progress, f"evaluating {name} on the evaluation data")
    return _row(Row(name), measured, start)


def qcfs_row(
    model: PreTrainedModel, examples: Scored, batch_size: int, progress: Progress, limit: int | str | None = None
) -> Row:
    """The QCFS model inside a prepared or converted model."""
    config, start = clock_of(model).config, time.time()
    with as_qcfs(model), limited(model, limit):
        measured = examples.evaluate(model, batch_size, progress, "evaluating QCFS model")
    return _row(Row("qcfs", coverage=config.coverage, levels=config.levels), measured, start)


def spiking_row(
    model: PreTrainedModel,
    target: SpikingConfig,
    examples: Scored,
    batch_size: int,
    progress: Progress,
    stopping: Stopping | None = None,
    limit: int | str | None = None,
) -> Row:
    """The SNN under ``target``, with its spikes; calibrated neurons are used where the model has them.

    ``stopping``: adaptive T, with the timesteps and spikes that sequences really took.
    """
    start = time.time()
    rate = target.coding == "rate"
    label = "layerwise" if not target.folds_time else f"{target.coding} T={target.timesteps}"
    calibrated = target.folds_time and target.neuron_key in calibrated_keys(sites_of(model).values())
    label += "" if not target.folds_time else ", after Stage 2" if calibrated else ", without Stage 2"
    label += "" if stopping is None else f", {stopping.label}"
    with at_time(model, **target.model_dump()), limited(model, limit), stops_early(model, stopping) as early:
        measured = examples.evaluate_spiking(model, batch_size, progress, f"evaluating SNN, {label}")
        if early is not None:
            early.unite()
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
        stage2=calibrated,
        settled=None if stopping is None else stopping.settled,
        confidence=None if stopping is None else stopping.confidence,
        mean_timesteps=None if early is None else early.mean_timesteps,
        stopped_early=None
        if early is None
        else sum(t < target.timesteps for t in early.timesteps) / len(early.timesteps),
    )
    if row.stage2 and not rate:
        row.steps_by_site = {n: [int(k) for k in s.steps_for(target)] for n, s in sites_of(model).items()}
    return _row(row, measured, start)


def as_tuned(row: Row) -> Row:
    """The row of a model whose weights ``fas tune`` has trained; what is not converted has no such weights."""
    return replace(row, tuned=True) if row.name in ("qcfs", "snn") else row


def layerwise_target(config: SpikingConfig) -> SpikingConfig:
    """The same conversion in the layerwise schedule (T = L)."""
    return config.replaced(schedule="layerwise", timesteps=config.levels)


def _row(row: Row, measured: Evaluation, start: float) -> Row:
    row.seconds, row.error = round(time.time() - start, 2), measured.error
    if measured.error is not None:
        return row
    row.metric, row.value, row.loss, row.tokens = measured.metric, measured.value, measured.loss, measured.tokens
    row.metrics = measured.metrics or None
    row.perplexity = measured.metrics.get("perplexity") if measured.metrics else measured.perplexity
    row.stderr, row.items, row.truncated = measured.stderr, measured.items, measured.truncated
    if measured.spikes is not None:
        row.spikes_per_neuron = measured.spikes.per_neuron
        row.by_site = {name: count.per_neuron for name, count in measured.spikes.sites.items()}
    return row
