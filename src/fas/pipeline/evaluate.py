"""``fas eval``: the ANN, the control, the QCFS model and the SNN of a converted folder side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fas.errors import FasError
from fas.pipeline.load import block_length, load_ann, load_spiking
from fas.pipeline.measure import dense_row, layerwise_target, qcfs_row, spiking_row
from fas.progress import Progress, Silent
from fas.report.results import Results, Row
from fas.runtime.control import clock_of, sites_of
from fas.tasks.language_modeling import encode_blocks, spread
from fas.tasks.text import evaluation_text

EVALUATION_BATCH = 16


def evaluate_folder(
    folder: Path,
    data: str,
    *,
    eval_data: str | None = None,
    timesteps: Sequence[int] | None = None,
    codings: Sequence[str] | None = None,
    layerwise: bool = False,
    eval_sequences: int | None = None,
    batch_size: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Results:
    """Measure every form of ``folder`` on the evaluation part of ``data``.

    Without ``timesteps`` and ``codings`` the folder's own are measured; each given timestep is crossed with each coding.
    The ANN is measured if the model it came from can be loaded; else its stored row is shown, marked so. Raises
    `CheckpointError` if ``folder`` is not a converted model and `DataError` for too little text.
    """
    progress, batch = progress or Silent(), batch_size or EVALUATION_BATCH
    model, tokenizer = load_spiking(str(folder), device, dtype)
    config = clock_of(model).config
    length = block_length(model, length)
    blocks = spread(
        encode_blocks(tokenizer, evaluation_text(data, eval_data), length, "evaluation text"), eval_sequences
    )
    targets = [
        config.replaced(coding=coding, timesteps=count)
        if (coding, count) != (config.coding, config.timesteps)
        else config
        for coding in codings or (config.coding,)
        for count in timesteps or (config.timesteps,)
    ]
    rows = _dense_rows(Path(folder), data, blocks, batch, device, dtype, progress)
    rows.append(qcfs_row(model, blocks, batch, progress))
    known = sorted(next(iter(sites_of(model).values())).neurons)
    for target in [*([layerwise_target(config)] if layerwise else []), *targets]:
        if target.folds_time and known and target.neuron_key not in known:
            progress.note(f"no calibrated neurons for {target.neuron_key}; uncalibrated ones are measured")
        rows.append(spiking_row(model, target, blocks, batch, progress))
    return Results(str(folder), eval_data or data, seed, rows)


def _dense_rows(
    folder: Path, data: str, blocks: torch.Tensor, batch: int, device: str, dtype: str | None, progress: Progress
) -> list[Row]:
    stored = Results.read(folder / "results.json") if (folder / "results.json").exists() else None
    precision = dtype or "float32"
    rows: list[Row] = []
    if stored is not None:
        try:
            ann, _ = load_ann(stored.model, device, precision)
            rows.append(dense_row("ann", ann, blocks, batch, progress))
        except FasError as error:
            progress.note(f"the original model is not at hand ({error})")
            rows += [_as_stored(row) for row in stored.rows if row.name == "ann" and stored.data == data]
    if (folder / "control").exists():
        control, _ = load_ann(str(folder / "control"), device, precision)
        rows.append(dense_row("control", control, blocks, batch, progress))
    else:
        progress.note(f"{folder} has no control beside it; ratios are against the ANN")
    return rows


def _as_stored(row: Row) -> Row:
    row.stored = True
    return row
