"""The plan of an ablation: what each variant is, and that the same thing is one cell."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fas.calibration import CalibrationOptions
from fas.errors import ConfigError
from fas.pipeline.ablation_options import AblateOptions
from fas.pipeline.ablation_plan import GROUPS, cell_of, described, groups_of


def base(**more: Any) -> AblateOptions:
    return AblateOptions(model="m", data="d", out=Path("o"), **more)


def planned(options: AblateOptions) -> dict[tuple[str, str], Any]:
    return {(g.name, v.name): cell_of(v, options) for g in groups_of(options) for v in g.variants}


def test_every_group_is_planned_and_an_unknown_one_refused() -> None:
    assert tuple(group.name for group in groups_of(base())) == GROUPS
    assert [len(group.variants) for group in groups_of(base())] == [4, 4, 6, 4, 2, 5, 16]
    assert [group.name for group in groups_of(base(groups=("grid", "stages")))] == ["stages", "grid"]
    with pytest.raises(ConfigError, match="group 'stage' is not known; choose among stages, calibration"):
        groups_of(base(groups=("stage",)))


def test_what_is_the_same_is_one_cell_and_what_is_not_is_another() -> None:
    cells = planned(base())
    same = [
        ("stages", "both stages"), ("calibration", "coarse and fine"), ("losses", "error at the readers of each site"),
        ("coding", "sigma-delta, schedules by site"), ("size", "32 sequences"), ("grid", "L = 15, T = 8"),
    ]  # fmt: skip
    assert len({cells[name] for name in same}) == len({cells[name].key for name in same}) == 1
    assert cells["stages", "Stage 1 only"] == cells["calibration", "no Stage 2"]
    assert cells["calibration", "coarse only"] == cells["neurons", "each site"]
    assert cells["losses", "none"] == cells["neurons", "each channel"]
    # 41 variants; of six that are the base five are spared, and three more
    assert len(cells) == 41
    assert len(set(cells.values())) == len({cell.key for cell in cells.values()}) == 41 - 5 - 3


def test_a_key_is_of_the_content_and_not_of_seeds_groups_or_the_folder() -> None:
    first, second = planned(base()), planned(base(seeds=(5,), jobs=3))
    assert {name: cell.key for name, cell in first.items()} == {name: cell.key for name, cell in second.items()}
    for changed in ({"fit_steps": 9}, {"timesteps": 5}, {"levels": 7}):
        assert planned(base(**changed))["stages", "both stages"].key != first["stages", "both stages"].key


DEFAULT = asdict(CalibrationOptions())
BASE = {
    "stage1": "full", "stage2": DEFAULT, "calibration_sequences": 32, "levels": 15, "timesteps": 8, "rows": "mean",
    "coding": "sigma_delta", "neurons_per_channel": 1,
}  # fmt: skip
SEARCH = DEFAULT | {"fit_steps": 0}
WITHOUT = {"stage2": None, "calibration_sequences": 0}


@pytest.mark.parametrize(
    ("group", "variant", "differs"),
    [
        ("stages", "neither stage", {"stage1": "none"} | WITHOUT),
        ("stages", "Stage 1 only", WITHOUT),
        ("stages", "Stage 2 only", {"stage1": "none"}),
        ("calibration", "coarse only", {"stage2": SEARCH | {"per_channel": False}}),
        ("calibration", "fine only", {"stage2": DEFAULT | {"coarse": False, "per_channel": False}}),
        ("calibration", "coarse and fine", {}),
        ("losses", "none", {"stage2": SEARCH}),
        ("losses", "error at the readers of each site", {}),
        ("losses", "activation-align of each layer", {"stage2": SEARCH | {"align_steps": 16}}),
        ("losses", "logits", {"stage2": SEARCH | {"global_steps": 16}}),
        ("losses", "all three", {"stage2": DEFAULT | {"align_steps": 16, "global_steps": 16}}),
        ("coding", "rate, step rows (the paper's)", {"coding": "rate", "rows": "step"}),
        ("coding", "rate, mean rows", {"coding": "rate"}),
        ("coding", "sigma-delta, one schedule", {"stage2": DEFAULT | {"search_steps": False}}),
        ("neurons", "each site", {"stage2": SEARCH | {"per_channel": False}}),
        ("size", "64 sequences", {"calibration_sequences": 64}),
        ("grid", "L = 15, T = 3", {"levels": 15, "timesteps": 3}),
    ],
)
def test_a_variant_is_what_it_says(group: str, variant: str, differs: dict[str, Any]) -> None:
    assert described(planned(base())[group, variant]) == BASE | differs


@pytest.mark.parametrize(
    "bad", [{"seeds": ()}, {"seeds": (1, 1)}, {"jobs": 0}, {"grid_levels": ()}, {"levels": 0}, {"eval_sequences": 0}]
)
def test_bad_options_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        base(**bad)
