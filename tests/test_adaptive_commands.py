"""Adaptive T in reports and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folders
import pytest
import torch

from fas.cli import main
from fas.report.html import headline_row
from fas.report.plots import quality_over_time
from fas.report.results import Results, Row
from fas.report.words import ADAPTIVE_NOTE, describe_snn, notes

# Reports


def test_reports_do_not_take_an_adaptive_row_for_one_of_all_timesteps() -> None:
    common: dict[str, Any] = {
        "metric": "perplexity",
        "coding": "sigma_delta",
        "schedule": "synchronous",
        "timesteps": 8,
    }
    early = Row("snn", value=9.9, settled=True, confidence=0.9, mean_timesteps=3.0, stopped_early=1.0, **common)
    full = Row("snn", value=10.1, **common)
    ann = Row("ann", metric="perplexity", value=10.0)
    results = Results.from_dict(Results("model", "data", 0, [ann, early, full]).to_dict())
    assert headline_row(results) == full
    assert describe_snn(full) == "sigma-delta, T = 8"
    assert describe_snn(early) == "sigma-delta, T = 8, stops when settled or 0.9 confident"
    assert quality_over_time(Results("model", "data", 0, [ann, early])) is None
    assert ADAPTIVE_NOTE in notes(results)
    assert ADAPTIVE_NOTE not in notes(Results("model", "data", 0, [ann, full]))


# Command line


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("adaptive")
    model, text = folders.save_ann(root / "ann"), folders.save_text(root / "text.txt")
    with torch.enable_grad():
        assert main([
            "convert", "--model", model, "--data", text, "--out", str(root / "snn"), "--stage1", "none", "--no-stage2",
            "--levels", "8", "--timesteps", "24", "--length", "4", "--eval-sequences", "4", "--quiet",
        ]) == 0  # fmt: skip
    return str(root / "snn"), text


def test_eval_reports_mean_timesteps(converted: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, text = converted
    arguments = ["eval", folder, "--data", text, "--adaptive", "--confidence", "0,1", "--quiet"]
    assert main([*arguments, "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["rows"] if row["name"] == "snn"]
    full, settled, at_once, sure = rows
    assert settled["perplexity"] == full["perplexity"]
    assert settled["spikes_per_neuron"] == full["spikes_per_neuron"]
    assert 1 < settled["mean_timesteps"] < 24
    assert settled["stopped_early"] > 0
    assert "mean_timesteps" not in full
    assert (at_once["mean_timesteps"], at_once["confidence"], at_once["stopped_early"]) == (1, 0, 1)
    assert at_once["spikes_per_neuron"] < full["spikes_per_neuron"]
    assert sure["mean_timesteps"] == settled["mean_timesteps"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "settled or 0 confident" in shown
    assert f"{settled['mean_timesteps']:.2f}" in shown
    assert "In simulation all T are" in shown


def test_eval_of_rate_needs_a_confidence(converted: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, text = converted
    arguments = ["eval", folder, "--data", text, "--timesteps", "4"]
    assert main([*arguments, "--coding", "rate", "--adaptive"]) == 2
    captured = capsys.readouterr()
    assert "never settle" in captured.err
    assert "evaluating" not in captured.err
    assert main([*arguments, "--adaptive", "--confidence", "1.5"]) == 2
    assert "no probability" in capsys.readouterr().err
    assert main([*arguments, "--confidence", "high"]) == 2
    assert "not a list of numbers" in capsys.readouterr().err
    assert main([*arguments, "--coding", "rate,sigma_delta", "--adaptive", "--json"]) == 0
    captured = capsys.readouterr()
    assert "rate_mean_4 never settles" in captured.err
    assert [r["coding"] for r in json.loads(captured.out)["rows"] if "mean_timesteps" in r] == ["sigma_delta"]
    assert main([*arguments, "--coding", "rate", "--confidence", "0,1", "--json"]) == 0
    *_, at_once, never = json.loads(capsys.readouterr().out)["rows"]
    assert (at_once["mean_timesteps"], at_once["stopped_early"]) == (1, 1)
    assert (never["mean_timesteps"], never["stopped_early"]) == (4, 0)


def test_generate_reports_mean_timesteps(converted: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = converted
    arguments = ["generate", folder, "--prompt", "w3 w4", "--max-new-tokens", "3"]

    def answer(*more: str) -> tuple[dict[str, Any], str]:
        assert main([*arguments, *more, "--json"]) == 0
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err

    full, _ = answer()
    settled, said = answer("--adaptive")
    assert settled["text"] == full["text"]
    assert settled["spikes_per_neuron"] == full["spikes_per_neuron"]
    assert 1 < settled["mean_timesteps"] < 24
    assert f"T = 24 ({settled['mean_timesteps']:.2f} a token)" in said
    assert "mean_timesteps" not in full
    assert answer("--confidence", "0")[0]["mean_timesteps"] == 1
    assert answer("--coding", "rate", "--confidence", "0")[0]["mean_timesteps"] == 1
    assert main([*arguments, "--coding", "rate", "--adaptive"]) == 2
    assert "running means" in capsys.readouterr().err
    assert main([*arguments, "--confidence", "2"]) == 2
    assert "no probability" in capsys.readouterr().err


def test_the_page_of_adaptive_time_is_linked() -> None:
    root = Path(__file__).parents[1]
    assert "docs/adaptive.md" in (root / "README.md").read_text()
    assert (root / "docs" / "adaptive.md").exists()
