"""The ablations as data: groups of named variants, and the cells, each computed once, that they come down to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fas.calibration import CalibrationOptions
from fas.config import Coding, Rows, SpikingConfig
from fas.errors import ConfigError
from fas.pipeline.ablation_options import AblateOptions


@dataclass(frozen=True)
class Variant:
    """One row of a group: what differs from the base (sigma_delta, both stages, the L, T and Stage 2 of the options)."""

    name: str
    stage1: bool = True
    """Whether Stage 1 trains; else the conversion is training-free."""
    stage2: Mapping[str, Any] | None = field(default_factory=dict)
    """Fields of `CalibrationOptions` that differ; None: no Stage 2."""
    gradients: tuple[str, ...] = ("fit",)
    """Of ``fit`` (site by site), ``align`` (layers), ``global`` (logits): those that are used, with the options' steps."""
    coding: Coding = "sigma_delta"
    rows: Rows = "mean"
    neurons_per_channel: int = 1
    levels: int | None = None
    timesteps: int | None = None
    sequences: int | None = None
    """Of calibration text."""


@dataclass(frozen=True)
class Group:
    """Variants that are compared with each other."""

    name: str
    title: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Cell:
    """What is computed, apart from the seed: variants that come down to the same cell share it."""

    stage1: bool
    target: SpikingConfig
    stage2: CalibrationOptions | None
    sequences: int
    """Of calibration text; 0 without Stage 2."""

    @property
    def key(self) -> str:
        """Name by content: equal cells, and no others, have the same."""
        stage2 = None if self.stage2 is None else asdict(self.stage2)
        values = [self.stage1, self.target.model_dump(), stage2, self.sequences]
        return "cell-" + hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


NO_SEARCH = {"coarse": False, "per_channel": False}
BY_SITE = {"per_channel": False}

_FIXED = (
    Group(
        "stages",
        "The two stages",
        (
            Variant("neither stage", stage1=False, stage2=None),
            Variant("Stage 1 only", stage2=None),
            Variant("Stage 2 only", stage1=False),
            Variant("both stages"),
        ),
    ),
    Group(
        "calibration",
        "Stage 2: coarse (a search, by site) and fine (channels, by search and gradient)",
        (
            Variant("no Stage 2", stage2=None),
            Variant("coarse only", stage2=BY_SITE, gradients=()),
            Variant("fine only", stage2=NO_SEARCH),
            Variant("coarse and fine"),
        ),
    ),
    Group(
        "losses",
        "Losses of the fine part of Stage 2, after the search",
        (
            Variant("none", gradients=()),
            Variant("error at the readers of each site"),
            Variant("activation-align of each layer", gradients=("align",)),
            Variant("logits", gradients=("global",)),
            Variant("activation-align and logits", gradients=("align", "global")),
            Variant("all three", gradients=("fit", "align", "global")),
        ),
    ),
    Group(
        "coding",
        "Coding",
        (
            Variant("rate, step rows (the paper's)", coding="rate", rows="step"),
            Variant("rate, mean rows", coding="rate"),
            Variant("sigma-delta, one schedule", stage2={"search_steps": False}),
            Variant("sigma-delta, schedules by site"),
        ),
    ),
    Group(
        "neurons",
        "Search of Stage 2, no gradient: a pair of parameters for",
        (
            Variant("each site", stage2=BY_SITE, gradients=()),
            Variant("each channel", gradients=()),
        ),
    ),
    Group(
        "size",
        "Calibration set",
        tuple(Variant(f"{count} sequences", sequences=count) for count in (4, 8, 16, 32, 64)),
    ),
)
GROUPS = (*(group.name for group in _FIXED), "grid")


def grid(levels: tuple[int, ...], timesteps: tuple[int, ...]) -> Group:
    """L × T, both stages."""
    pairs = [(count, steps) for count in levels for steps in timesteps]
    return Group(
        "grid",
        "Levels L × timesteps T",
        tuple(Variant(f"L = {count}, T = {steps}", levels=count, timesteps=steps) for count, steps in pairs),
    )


def groups_of(options: AblateOptions) -> list[Group]:
    """The groups that were asked for, in their own order. Raises `ConfigError` for an unknown name."""
    asked = options.groups or GROUPS
    unknown = sorted(set(asked) - set(GROUPS))
    if unknown:
        raise ConfigError(f"group {unknown[0]!r} is not known; choose among {', '.join(GROUPS)}")
    every = (*_FIXED, grid(options.grid_levels, options.grid_timesteps))
    return [group for group in every if group.name in asked]


def cell_of(variant: Variant, options: AblateOptions) -> Cell:
    """What ``variant`` comes down to on the base of ``options``. Raises `ConfigError` where that is no valid conversion."""
    target = SpikingConfig(
        coverage=options.coverage,
        levels=options.levels if variant.levels is None else variant.levels,
        coding=variant.coding,
        timesteps=options.timesteps if variant.timesteps is None else variant.timesteps,
        neurons_per_channel=variant.neurons_per_channel,
        rows=variant.rows,
    )
    if variant.stage2 is None:
        return Cell(variant.stage1, target, None, 0)
    asked = {"fit": options.fit_steps, "align": options.align_steps, "global": options.global_steps}
    steps: dict[str, Any] = {
        f"{name}_steps": count if name in variant.gradients else 0 for name, count in asked.items()
    }
    settings = CalibrationOptions(**(steps | dict(variant.stage2)))
    return Cell(variant.stage1, target, settings, variant.sequences or options.calibration_sequences)


def described(cell: Cell) -> dict[str, Any]:
    """The cell as plain values, for the results."""
    return {
        "stage1": "full" if cell.stage1 else "none",
        "stage2": None if cell.stage2 is None else asdict(cell.stage2),
        "calibration_sequences": cell.sequences,
        **cell.target.model_dump(include={"levels", "coding", "rows", "timesteps", "neurons_per_channel"}),
    }
