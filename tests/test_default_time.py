"""What a folder runs in where nobody names a time: the best that was measured, whatever the order of the list."""

from __future__ import annotations

import math
from itertools import permutations

import pytest

from fas.cli.ablate import command as ablate
from fas.config import USUAL_LEVELS, USUAL_TIMESTEPS, SpikingConfig
from fas.pipeline.ablation_options import AblateOptions
from fas.pipeline.default_time import best_measured, named
from fas.pipeline.options import ConvertOptions
from fas.report.results import Row


def targets(timesteps: tuple[int, ...], coding: str = "sigma_delta") -> list[SpikingConfig]:
    return [SpikingConfig(levels=3, coding=coding, timesteps=count) for count in timesteps]  # type: ignore[arg-type]


def row(timesteps: int, value: float | None, metric: str = "perplexity", stage2: bool = True, **more: object) -> Row:
    made = Row("snn", coding="sigma_delta", timesteps=timesteps, schedule="synchronous", stage2=stage2, value=value)
    made.metric, made.metrics = metric, None if metric == "perplexity" else {metric: value}
    for name, thing in more.items():
        setattr(made, name, thing)
    return made


@pytest.mark.parametrize("order", permutations((2, 4, 8)))
@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("perplexity", {2: 30.0, 4: 20.0, 8: 21.0}, 4),
        ("perplexity", {2: 30.0, 4: 20.0, 8: 20.0}, 4),  # equal: the smaller T
        ("perplexity", {2: 30.0, 4: math.nan, 8: 20.0}, 8),
        ("perplexity", {2: 30.0, 4: None, 8: math.inf}, 2),
        ("perplexity", {2: None, 4: None, 8: math.nan}, 8),
        ("accuracy", {2: 0.5, 4: 0.7, 8: 0.9}, 8),
        ("perplexity", {}, 8),
    ],
)
def test_the_best_of_any_order(order: tuple[int, ...], metric: str, values: dict[int, float | None], best: int) -> None:
    rows = [row(count, value, metric) for count, value in values.items()]
    assert best_measured(rows, targets(order)).timesteps == best


def test_what_does_not_count() -> None:
    """Rows before Stage 2, of runs that stop early, of the layerwise schedule and of other models."""
    rows = [
        row(2, 20.0), row(4, 30.0),
        row(4, 1.0, stage2=False), row(4, 1.0, mean_timesteps=2.0), row(4, 1.0, schedule="layerwise"), row(4, 1.0, name="qcfs"),
    ]  # fmt: skip
    assert best_measured(rows, targets((4, 2))).timesteps == 2
    assert best_measured([row(4, 1.0, stage2=False), row(2, 2.0, stage2=False)], targets((2, 4))).timesteps == 4


def test_codings_are_told_apart() -> None:
    both = targets((4,), "rate") + targets((4,))
    assert best_measured([row(4, 9.0), row(4, 10.0, coding="rate")], both).coding == "sigma_delta"
    assert best_measured([row(4, 11.0), row(4, 10.0, coding="rate")], both).coding == "rate"
    assert named(both[0]) == "rate, T = 4"


def test_one_set_of_defaults_on_every_way() -> None:
    config, asked = SpikingConfig(), AblateOptions("m", "d", out=None)  # type: ignore[arg-type]
    shown = ablate.__defaults__ or ()
    assert (config.levels, config.timesteps) == (USUAL_LEVELS, USUAL_TIMESTEPS) == (asked.levels, asked.timesteps)
    assert {USUAL_LEVELS, USUAL_TIMESTEPS} <= {value for value in shown if isinstance(value, int)}
    (converted,) = ConvertOptions("m", "d", None).configurations()  # type: ignore[arg-type]
    assert (converted.levels, converted.timesteps) == (USUAL_LEVELS, USUAL_TIMESTEPS)
