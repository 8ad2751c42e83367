"""Advice after a conversion: more moves where few timesteps keep the SNN away from its QCFS model."""

from __future__ import annotations

from collections.abc import Sequence

from fas.calibration.options import SETTLED
from fas.report.results import Row
from fas.steps import MOVES, neurons_for_moves


def more_moves(rows: Sequence[Row]) -> str | None:
    """Sentence for the sigma-delta row of ``rows`` that is farthest from the QCFS model; None if all are near.

    Near is a loss within `SETTLED` nats. A value makes timesteps × neurons moves; from `MOVES` on more of them are no remedy.
    """
    qcfs = next((row.loss for row in rows if row.name == "qcfs"), None)
    if qcfs is None:
        return None
    worse = [row for row in rows if _is_short(row) and (row.loss or 0.0) - qcfs > SETTLED]
    if not worse:
        return None
    row = max(worse, key=lambda row: row.loss or 0.0)
    timesteps, neurons, distance = row.timesteps or 1, row.neurons_per_channel or 1, (row.loss or 0.0) - qcfs
    return (
        f"T = {timesteps} is {distance:.2f} nats from the QCFS model: with {neurons} neurons a channel a value makes "
        f"{timesteps * neurons} moves, and deep networks take {MOVES}; --neurons-per-channel {neurons_for_moves(timesteps)} "
        f"or --timesteps {-(-MOVES // neurons)} makes as many"
    )


def _is_short(row: Row) -> bool:
    """Whether ``row`` is of an SNN in which all layers advance together, after Stage 2, with fewer than `MOVES` moves."""
    together = row.name == "snn" and row.schedule == "synchronous" and row.mean_timesteps is None
    counted = together and row.coding == "sigma_delta" and row.stage2 is not False and row.timesteps is not None
    return bool(counted and (row.timesteps or 1) * (row.neurons_per_channel or 1) < MOVES)
