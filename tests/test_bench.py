"""``fas bench``: what is asked for is timed, ratios are of what they say, and what is timed is what users run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import folders
import pytest
import torch
from typer.testing import CliRunner

from fas.cli import app
from fas.errors import ConfigError
from fas.neurons import rate_step_rows
from fas.pipeline import bench
from fas.pipeline.bench import BenchOptions, Case, run_bench, timed
from fas.pipeline.bench_cases import model_cases, step_loop
from fas.progress import Silent
from fas.report.speed import as_table

KEYS = {"what", "coverage", "coding", "schedule", "timesteps", "dtype", "against", "ratio", "ratio_min", "ratio_max"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("bench") / "model"
    folders.save_ann(place)
    return str(place)


def test_a_ratio_is_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both once to warm up; then ours first, the other first, ours first: 4/2, 3/1 and 2/4 seconds."""
    now, waits = 0.0, iter([9.0, 9.0, 4.0, 2.0, 1.0, 3.0, 2.0, 4.0])

    def wait() -> None:
        nonlocal now
        now += next(waits)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    row = timed(Case("neuron", "copy", wait, wait), 3, Silent())
    assert (row.ratio, row.ratio_min, row.ratio_max) == (2, 0.5, 3)
    assert (row.milliseconds, row.milliseconds_against) == (3000, 2000)


def test_what_is_asked_for_is_timed(model: str, tmp_path: Path) -> None:
    asked = [
        "bench",
        f"--model={model}",
        "--what=prefill,decode,stage1_step",
        "--coverage=ffn",
        "--coding=sigma-delta,rate",
    ]
    asked += [
        "--timesteps=4",
        "--dtype=float32,bfloat16",
        "--length=8",
        "--rounds=1",
        f"--out={tmp_path / 'speed.json'}",
    ]
    done = CliRunner().invoke(app, [*asked, "--quiet"], catch_exceptions=False)
    found = json.loads((tmp_path / "speed.json").read_text())
    assert all(set(row) >= KEYS for row in found["rows"])
    told = [(r["what"], r["coding"], r["schedule"], r["timesteps"], r["against"]) for r in found["rows"]]
    one = [("stage1_step", None, None, None, "ann")]
    one += [(what, None, "layerwise", 8, "ann") for what in ("prefill", "decode")]
    for coding in ("sigma_delta", "rate"):
        time_of = (coding, "synchronous", 4)
        one += [("prefill", *time_of, "ann"), ("prefill", *time_of, "naive"), ("decode", *time_of, "ann")]
    assert told == one * 2
    assert [row["dtype"] for row in found["rows"]] == ["float32"] * len(one) + ["bfloat16"] * len(one)
    assert found["integer_bits"] == 16
    assert done.stdout == as_table(found) + "\n"
    assert "medians of 1 rounds" in done.stdout


def test_cases_compute_what_they_say(model: str) -> None:
    """Prefill is the model's own, simulated for T; integer products are in use; nothing stays behind."""
    options = BenchOptions(model=model, what=("prefill",), coverages=("linear",), timesteps=(4,), length=8)
    logits = []
    for case in model_cases(options, Silent()):
        ours, other = case.ours().logits, case.other()
        assert not ours.requires_grad
        assert (other is None) == (case.against == "naive")
        logits.append(ours)
    assert len(logits) == 3  # layerwise, and T = 4 twice
    assert torch.equal(logits[1], logits[2])  # the naive run in between left no neuron behind
    assert not torch.equal(logits[0], logits[1])


def test_the_naive_loop_is_the_same_neuron() -> None:
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(50)
    assert torch.allclose(step_loop(x, ones), rate_step_rows(x, ones, ones / 2, False)[0])


def test_neurons_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fas.pipeline.bench_cases.NEURONS", (1, 4, 64))
    found = run_bench(
        BenchOptions(what=("neuron",), codings=("sigma_delta", "rate"), timesteps=(2,), rounds=1, threads=1)
    )
    rows = [(row.coding, row.against) for row in found.rows if row.against != "spikingjelly"]
    assert rows == [(coding, against) for coding in ("sigma_delta", "rate") for against in ("copy", "naive")]
    assert found.about["threads"] == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"what": ("speed",)}, "what='speed' is not valid: choose of neuron, prefill, decode, stage1_step"),
        ({"dtypes": ("int4",)}, "dtype='int4' is not valid"),
        ({"rounds": 0}, "rounds and timesteps must be at least 1"),
        ({"integer_bits": 12}, "integer_bits=12 is not valid"),
    ],
)
def test_bad_settings(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bench.BenchOptions(**wrong)  # type: ignore[arg-type]
