"""``fas eval --tasks``: zero- and few-shot tasks under the ANN, the control, the QCFS model and the SNN side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fas.config import SpikingConfig
from fas.errors import CheckpointError, FasError
from fas.pipeline.asked import results_of
from fas.pipeline.evaluate import targets_of
from fas.pipeline.load import auto_class_of, block_length, load_ann, load_spiking, reader_of, spiking_config_of
from fas.pipeline.measure import (
    EVALUATION_BATCH,
    as_tuned,
    dense_row,
    layerwise_target,
    qcfs_row,
    spiking_row,
    with_integers,
)
from fas.pipeline.outliers import with_prefix
from fas.progress import Progress, Silent
from fas.report.results import Results, Row
from fas.runtime.accelerated import integer_paths
from fas.runtime.control import calibrated_keys, clock_of, sites_of
from fas.tasks.reading.journal import Reading


def evaluate_tasks(
    folder: Path,
    names: Sequence[str],
    *,
    include: Sequence[Path] = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    timesteps: Sequence[int] | None = None,
    codings: Sequence[str] | None = None,
    layerwise: bool = False,
    batch_size: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str | None = None,
    memory_limit: int | str | None = None,
    integer_bits: int = 0,
    progress: Progress | None = None,
) -> Results:
    """A row for each form of ``folder`` at each task (``names`` as in `fas.tasks.zero_shot.load_tasks`).

    Times, codings, ``memory_limit`` and ``integer_bits`` as in `evaluate_folder`; ``limit`` items of a task, evenly spaced.
    All data is loaded before anything is computed; a task that fails in a form has an ``error`` in that row, and all others
    their figures. Raises `CheckpointError` if ``folder`` is not a converted model, `FasError` if it is no causal one, if
    lm-eval is not installed, or if nothing could be measured, and `ConfigError` or `DataError` for a task that does not
    exist or whose data cannot be had.
    """
    progress, batch, folder = progress or Silent(), batch_size or EVALUATION_BATCH, Path(folder)
    config = _causal_config_of(folder)
    if length is not None:
        block_length(config, length)
    else:
        length = _beside_the_prefix(config)
    from fas.tasks.zero_shot import Asked, load_tasks

    reading = Reading(progress)
    tasks = load_tasks(names, _tokenizer_of(folder), Asked(limit, num_fewshot, seed, length), include, reading)
    reading.tell()
    model, _ = load_spiking(str(folder), device, dtype)
    converted = clock_of(model).config
    targets = [*([layerwise_target(converted)] if layerwise else []), *targets_of(model, converted, timesteps, codings)]
    stored = results_of(folder)
    tuning = stored.extra.get("tuning") if stored is not None else None
    rows: dict[str, list[Row]] = {task.name: [] for task in tasks}
    with with_integers(model, integer_bits):
        for measure in _forms(folder, model, targets, stored, device, batch, memory_limit, progress):
            for task in tasks:
                row = measure(examples=task)
                row.task = task.name
                if row.error is not None:
                    progress.note(f"{task.name} could not be measured: {row.error}")
                rows[task.name].append(as_tuned(row) if tuning else row)
        integers = {"integer_bits": integer_bits, "integer_products": integer_paths(model)} if integer_bits else {}
    found = [row for measured in rows.values() for row in measured]
    if all(row.error for row in found):
        raise FasError(f"no task could be measured; {found[0].task}: {found[0].error}")
    about = {"tasks": list(rows), "limit": limit, "num_fewshot": num_fewshot, "length": length}
    extra: dict[str, Any] = {"evaluation": {key: value for key, value in about.items() if value is not None}}
    extra |= (
        {"dtype": _precision(model), "lm_eval": version("lm_eval")} | ({"tuning": tuning} if tuning else {}) | integers
    )
    extra |= {"data": reading.about()} if reading.read else {}
    return Results(str(folder), ", ".join(rows), seed, found, extra=extra)


def _causal_config_of(folder: Path) -> PretrainedConfig:
    """The configuration of a converted model; raises `FasError` unless it continues text."""
    config = spiking_config_of(str(folder))
    if auto_class_of(config) is not AutoModelForCausalLM:
        kind = ", ".join(config.architectures or ["of an unknown class"])
        raise FasError(
            f"{folder} is no causal language model but {kind}, and --tasks asks how likely a text goes on; measure it with "
            "--data"
        )
    return config


def _beside_the_prefix(config: PretrainedConfig) -> int | None:
    """Tokens of the context that a prefix leaves, the same for all forms; None without a prefix or a known context."""
    prefix = config.quantization_config["spiking"].get("prefix") or ()
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return context - len(prefix) if prefix and context else None


def _tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return cast(PreTrainedTokenizerBase, reader_of(folder))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no tokenizer that can be loaded: {str(error).splitlines()[0]}") from None


def _forms(
    folder: Path,
    model: PreTrainedModel,
    targets: Sequence[SpikingConfig],
    stored: Results | None,
    device: str,
    batch: int,
    memory_limit: int | str | None,
    progress: Progress,
) -> Iterator[Callable[..., Row]]:
    """Each form as what measures it on ``examples``; of ANN and control, one is in memory at a time."""
    how = {"batch_size": batch, "progress": progress, "limit": memory_limit}
    if stored is not None and any(row.name == "ann" for row in stored.rows):
        try:
            yield partial(dense_row, "ann", load_ann(stored.model, device, _precision(model))[0], **how)
            if (config := clock_of(model).config).prefix:  # a part of what differs is the prefix, not the spikes
                prefixed = with_prefix(load_ann(stored.model, device, _precision(model))[0], config)
                yield partial(dense_row, "ann+prefix", prefixed, **how)
        except FasError as error:
            progress.note(f"the original model is not at hand ({error})")
    if (folder / "control").exists():
        yield partial(dense_row, "control", load_ann(str(folder / "control"), device, _precision(model))[0], **how)
    else:
        progress.note(f"{folder} has no control beside it; differences are to the ANN")
    yield partial(qcfs_row, model, **how)
    for target in targets:
        if target.folds_time and target.neuron_key not in calibrated_keys(sites_of(model).values()):
            progress.note(f"no calibrated neurons for {target.neuron_key}; uncalibrated ones are measured")
        yield partial(spiking_row, model, target, **how)


def _precision(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")
