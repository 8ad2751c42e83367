"""An ablation's rows over its seeds: mean and spread of each variant."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fas.report.results import Results, Row


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for one value), least and greatest of ``values``, one a seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Summary:
    """One variant. ``ratio`` and ``qcfs`` are perplexities over that of the same seed's control; None where no seed has one."""

    variant: str
    levels: int | None
    timesteps: int | None
    ratio: Spread | None
    qcfs: Spread | None
    spikes: Spread | None
    errors: tuple[tuple[int, str], ...]
    """Seeds that have no figure, and why."""


def summaries(results: Results) -> dict[str, list[Summary]]:
    """The variants of every group, in the order in which they were planned."""
    found: dict[str, dict[str, list[Row]]] = {name: {} for name in results.extra.get("groups", {})}
    for row in results.rows:
        if row.group is not None and row.variant is not None:
            found.setdefault(row.group, {}).setdefault(row.variant, []).append(row)
    return {
        group: [_summary(name, rows, results) for name, rows in variants.items()] for group, variants in found.items()
    }


def control_spread(results: Results) -> Spread | None:
    """Perplexity of the controls."""
    return _spread([row for row in results.rows if row.name == "control"], lambda row: row.value)


def _summary(variant: str, rows: Sequence[Row], results: Results) -> Summary:
    controls = {row.seed: row.value for row in results.rows if row.name == "control"}
    grids = {(r.seed, r.levels, r.stage1): r.value for r in results.rows if r.name == "qcfs"}

    def against(row: Row, value: float | None) -> float | None:
        control = controls.get(row.seed)
        return value / control if value is not None and control else None

    return Summary(
        variant,
        rows[0].levels,
        rows[0].timesteps,
        _spread(rows, lambda row: against(row, row.value)),
        _spread(rows, lambda row: against(row, grids.get((row.seed, row.levels, row.stage1)))),
        _spread(rows, lambda row: row.spikes_per_neuron),
        tuple((row.seed or 0, row.error) for row in rows if row.error is not None),
    )


def _spread(rows: Sequence[Row], of: Callable[[Row], float | None]) -> Spread | None:
    values = tuple(value for row in rows if (value := of(row)) is not None)
    return Spread(values) if values else None
