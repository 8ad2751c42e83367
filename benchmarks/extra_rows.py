"""Further rows of a finished conversion: other neurons on the same QCFS model, before and after Stage 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

import fas
from fas.calibration import CalibrationOptions
from fas.cli.show import Lines
from fas.pipeline.load import load_spiking
from fas.pipeline.measure import spiking_row
from fas.report.results import Row
from fas.runtime.control import clock_of
from fas.tasks.language_modeling import Blocks

CALIBRATION_BATCH = 4


def extra_rows(
    folder: Path,
    times: list[dict[str, Any]],
    calibration: Tensor,
    evaluation: Tensor,
    progress: Lines,
    options: CalibrationOptions | None = None,
    batch_size: int = 16,
) -> list[Row]:
    """Two rows for each of ``times`` (keyword arguments of ``set_timesteps``); blocks are token ids ``[N, S]``."""
    model, _ = load_spiking(str(folder))
    rows = []
    for time in times:
        model.set_timesteps(**time)
        target = clock_of(model).config
        rows.append(spiking_row(model, target, Blocks(evaluation), batch_size, progress))
        batches = [{"input_ids": batch.to(model.device)} for batch in calibration.split(CALIBRATION_BATCH)]
        fas.calibrate(model, batches, options, progress)
        rows.append(spiking_row(model, target, Blocks(evaluation), batch_size, progress))
    return rows
