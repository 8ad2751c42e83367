"""In which coding and time a converted folder runs when nobody says another: the best that was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fas.config import SpikingConfig
from fas.report.comparison import badness
from fas.report.results import Row


def best_measured(rows: Sequence[Row], targets: Sequence[SpikingConfig]) -> SpikingConfig:
    """The one of ``targets`` whose row in ``rows`` is best; of equal ones the smaller T, then the one listed first.

    A row before Stage 2 does not count where there is one after it. What has no finite value comes last, and of nothing
    else than that the largest T is taken, which is nearest to the QCFS model.
    """

    def place(target: SpikingConfig) -> tuple[float, int]:
        found = [row for row in rows if _is_of(row, target)]
        row = max(found, key=lambda row: bool(row.stage2), default=None)
        if row is None or row.value is None or not math.isfinite(row.value):
            return math.inf, -target.timesteps
        return badness(row), target.timesteps

    return min(targets, key=place)


def _is_of(row: Row, target: SpikingConfig) -> bool:
    at_one_time = row.name == "snn" and row.schedule == "synchronous" and row.mean_timesteps is None
    return at_one_time and (row.coding, row.timesteps) == (target.coding, target.timesteps)


def named(target: SpikingConfig) -> str:
    """Coding and time in words.

    >>> named(SpikingConfig(levels=3, timesteps=2))
    'sigma-delta, T = 2'
    """
    return f"{target.coding.replace('_', '-')}, T = {target.timesteps}"
