"""In which coding and time a converted folder runs when nobody says another: the best that was measured."""

from __future__ import annotations

from pathlib import Path

import folders
import pytest
from transformers import AutoModelForCausalLM

import fas
from fas.cli import main
from fas.config import USUAL_LEVELS, USUAL_TIMESTEPS, SpikingConfig
from fas.pipeline.ablation_options import AblateOptions
from fas.pipeline.convert import run_conversion
from fas.pipeline.default_time import best_measured
from fas.pipeline.options import ConvertOptions
from fas.report.results import Row
from fas.runtime.control import clock_of

TIMES = (2, 4, 8)


def measured(timesteps: int, value: float | None, **more: object) -> Row:
    common = {"coding": "sigma_delta", "schedule": "synchronous", "stage2": True, "metric": "perplexity"}
    return Row("snn", timesteps=timesteps, value=value, **(common | more))  # type: ignore[arg-type]


def chosen(*rows: Row) -> int:
    return best_measured(rows, [SpikingConfig(levels=8, timesteps=t) for t in TIMES]).timesteps


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_best_row_counts_whatever_the_order(order: tuple[int, ...]) -> None:
    rows = [measured(2, 50.0), measured(4, 9.0), measured(8, 10.0)]
    assert chosen(*(rows[i] for i in order)) == 4


def test_accuracies_are_better_when_larger() -> None:
    shares = ((2, 0.9), (4, 0.5), (8, 0.4))
    assert chosen(*(measured(t, v, metric="accuracy", metrics={"accuracy": v}) for t, v in shares)) == 2


def test_of_equal_ones_the_smaller_time() -> None:
    assert chosen(measured(2, 11.0), measured(4, 10.0), measured(8, 10.0)) == 4


def test_values_that_are_no_number_never_win() -> None:
    assert chosen(measured(2, float("nan")), measured(4, 12.0), measured(8, None)) == 4
    assert chosen() == 8  # nothing measured: nearest to the QCFS model


def test_rows_after_stage_2_are_those_of_the_folder() -> None:
    before = measured(8, 1.0, stage2=False)
    assert chosen(before, measured(2, 30.0), measured(4, 20.0), measured(8, 25.0)) == 4


def test_other_schedules_and_adaptive_rows_do_not_count() -> None:
    layerwise, early = measured(8, 1.0, schedule="layerwise"), measured(8, 1.0, mean_timesteps=2.0)
    assert chosen(layerwise, early, measured(2, 30.0), measured(4, 20.0), measured(8, 25.0)) == 4


def test_a_folder_loads_in_its_best_time_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = folders.save_ann(tmp_path / "ann"), folders.save_text(tmp_path / "text.txt")
    options = ConvertOptions(
        model=model, data=data, out=tmp_path / "snn", levels=15, timesteps=TIMES, stage1="none", length=16,
        activation="keep", calibration_sequences=4, eval_sequences=8,
    )  # fmt: skip
    results = run_conversion(options)
    rows = {row.timesteps: row.value for row in results.rows if row.name == "snn" and row.schedule == "synchronous"}
    best = min(rows, key=lambda t: rows[t])
    assert best != TIMES[0], "the first listed would not show which rule holds"
    assert results.extra["default_time"] == {"coding": "sigma_delta", "timesteps": best}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "snn")
    assert clock_of(loaded).config.timesteps == best
    assert main(["generate", str(tmp_path / "snn"), "--prompt", "w1 w2", "--max-new-tokens", "1"]) == 0
    assert f"runs in sigma-delta, T = {best}" in " ".join(capsys.readouterr().err.split())


def test_command_line_and_python_have_the_same_defaults() -> None:
    config = fas.SpikingConfig()
    assert (config.levels, config.timesteps) == (USUAL_LEVELS, USUAL_TIMESTEPS) == (15, 8)
    ablation = AblateOptions(model="m", data="d", out=Path("o"))
    assert (ablation.levels, ablation.timesteps) == (15, 8)
    (asked,) = ConvertOptions(model="m", data="d", out=Path("o")).configurations()
    assert (asked.levels, asked.timesteps, asked.coding) == (config.levels, config.timesteps, config.coding)
