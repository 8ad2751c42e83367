"""``fas compare``: restartable, a failing method costs its own row, and the page shows what no other beats."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fas import convert, prepare
from fas.calibration import CalibrationOptions
from fas.cli import app
from fas.config import SpikingConfig
from fas.errors import ConfigError
from fas.methods import Method, method, methods, register, trained
from fas.pipeline import compare
from fas.pipeline.compare import CompareOptions, run_comparison
from fas.pipeline.convert import run_conversion
from fas.pipeline.load import load_ann, load_saved
from fas.pipeline.options import ConvertOptions
from fas.pipeline.priced import priced
from fas.progress import Silent
from fas.report.comparison import FIELDS, LEDGERS, as_csv, badness, front, headline
from fas.report.results import Results, Row

DOCS = Path(__file__).parents[1] / "docs" / "methods.md"
SHORT: dict[str, Any] = {
    "levels": 4, "stage1_steps": 3, "batch_size": 2, "length": 16, "calibration_sequences": 4, "eval_sequences": 4,
}  # fmt: skip


def options(tmp_path: Path, **more: Any) -> CompareOptions:
    if not (tmp_path / "model").exists():
        folders.save_ann(tmp_path / "model")
        folders.save_text(tmp_path / "text.txt", 40)
    base = ConvertOptions(
        str(tmp_path / "model"), str(tmp_path / "text.txt"), tmp_path / "out", timesteps=(4,), **SHORT
    )
    return CompareOptions(base, **more)


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, int]] = []
    measure = compare._measured

    def counted(run: Any, method: Method, timesteps: int) -> Row:
        measured.append((method.name, timesteps))
        return measure(run, method, timesteps)

    monkeypatch.setattr(compare, "_measured", counted)
    first = run_comparison(options(tmp_path, methods=("qcfs", "parallel"), timesteps=(2, 4)))
    again = run_comparison(options(tmp_path, methods=("parallel", "fas-sigma-delta"), timesteps=(4,)))
    assert measured == [("qcfs", 2), ("qcfs", 4), ("parallel", 2), ("parallel", 4), ("fas-sigma-delta", 4)]
    rows = {(row.method, row.timesteps): row for row in first.rows}
    assert vars(again.rows[2]) == vars(rows["parallel", 4])
    # the parallel neuron of T = L is the QCFS model, and its latency is T for each of the sites in series (two layers of four)
    assert first.rows[1].name == "qcfs"
    assert rows["parallel", 4].value == pytest.approx(first.rows[1].value)
    assert (rows["parallel", 4].latency_timesteps, rows["qcfs", 4].latency_timesteps) == (4 * 8, 4)
    assert rows["qcfs", 4].energy_strict_pj is not None
    assert rows["qcfs", 4].energies is not None
    assert first.rows[1].energies is not None
    assert first.rows[1].energies["with memory"] == pytest.approx(
        1
    )  # the quantized ANN is what that column compares with
    assert set(rows["qcfs", 4].energies) == set(LEDGERS.values())
    # both drop GELU; norms and softmax run once, or in each of four timesteps
    macs, functions = ([rows[name, 4].analog[key] for name in ("qcfs", "parallel")] for key in ("macs", "functions"))  # type: ignore[index]
    assert macs[0] == macs[1]
    assert functions[0] == pytest.approx(4 * functions[1])
    stored = Results.read(tmp_path / "out" / "compare.json")
    assert [vars(row) for row in stored.rows] == [vars(row) for row in again.rows]
    lines = list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))
    assert [(line["method"], line["timesteps"]) for line in lines] == [("parallel", "4"), ("fas-sigma-delta", "4")]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("<svg") == 3  # latency, spikes, energy
    assert "2 conversions of" in page


UNTRAINED: dict[str, Any] = {
    "stage1": "none", "activation": "keep", "prefix": (5, 7), "rotation": "heads", "center": True, "stage1_steps": None,
}  # fmt: skip


def untrained(tmp_path: Path, **more: Any) -> CompareOptions:
    """A comparison in which nothing is trained, with a prefix."""
    made = options(tmp_path, **more)
    return replace(made, base=replace(made.base, **UNTRAINED))


def test_without_training_all_start_from_the_ann(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, started = ("fas-population", "qcfs", "direct-max", "spikezip"), []
    measure = compare._measured
    monkeypatch.setattr(compare, "_measured", lambda *cell: started.append(cell[1].name) or measure(*cell))
    results = run_comparison(untrained(tmp_path, methods=methods, timesteps=(4,)))
    rows = results.rows
    assert [row.error for row in rows] == [None] * 7
    assert [row.method or row.name for row in rows] == ["ann", "ann+prefix", "qcfs", *methods]
    assert [row.neurons_per_channel for row in rows[3:]] == [2, 1, 1, 1]
    assert rows[0].loss != rows[1].loss
    assert results.extra["control"]["chosen"] == "ann"
    said = results.extra["options"]
    assert (said["prefix"], said["rotation"], said["center"]) == ((5, 7), "heads", True)
    ann = load_ann(str(tmp_path / "model"))[0]
    for start in ("control", "qcfs"):  # no weight was moved but by rotations
        kept = load_saved(tmp_path / "out" / "compare.work" / start, torch.device("cpu"))
        assert torch.equal(kept.get_input_embeddings().weight, ann.get_input_embeddings().weight)
    best = min(rows[3:], key=badness)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert f"Within 16 timesteps of latency {best.method} (T = 4" in page
    assert f"where the original has {rows[0].value:.2f} (×{(best.value or 0) / (rows[0].value or 1):.3f})" in page
    assert "here all (fas-population, qcfs, spikezip) take it untrained" in page
    assert "fine-tuned" not in page.split("<svg")[0].split("<h1>")[1]
    assert "vs ANN" in page
    lines = list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))
    assert [line["neurons_per_channel"] for line in lines] == ["2", "1", "1", "1"]
    assert float(lines[0]["against_control"]) == pytest.approx((rows[3].value or 0) / (rows[0].value or 1))
    again = run_comparison(untrained(tmp_path, methods=("sta", *methods), timesteps=(4,)))
    assert started == [*methods, "sta"]
    assert [vars(row) for row in again.rows[4:]] == [vars(row) for row in rows[3:]]


def test_our_rows_are_those_of_a_conversion(tmp_path: Path) -> None:
    made = untrained(tmp_path, methods=("fas-population",), timesteps=(4,))
    row = run_comparison(made).rows[-1]
    more = {"codings": ("sigma_delta",), "timesteps": (4,), "neurons_per_channel": 2, "out": tmp_path / "snn"}
    converted = run_conversion(replace(made.base, **more)).rows
    (other,) = [row for row in converted if row.name == "snn" and row.schedule == "synchronous"]
    assert (row.value, row.neurons_per_channel) == (other.value, other.neurons_per_channel)
    assert row.spikes_per_neuron == pytest.approx(other.spikes_per_neuron)


def test_deep_networks_are_calibrated_as_a_conversion_does(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[CalibrationOptions] = []
    monkeypatch.setattr(trained, "number_of_layers", lambda model: 30)
    monkeypatch.setattr(trained, "calibrate", lambda model, batches, settings, progress: taken.append(settings))
    model = tiny.ann("gpt2").eval()
    config = SpikingConfig(levels=8, timesteps=4)
    prepare(model, config, [tiny.inputs_for(model, 4)])
    methods()["fas-population"].build(model, config, 4, [], Silent())
    assert taken == [CalibrationOptions.for_depth(30)]
    assert taken[0].settle


def test_the_headline_is_of_low_latency(tmp_path: Path) -> None:
    rows = [
        Row("ann", metric="perplexity", value=10.0),
        Row("snn", method="slow", metric="perplexity", value=10.1, timesteps=4, latency_timesteps=80),
        Row("snn", method="late", metric="perplexity", value=11.0, timesteps=16, latency_timesteps=16),
        Row("snn", method="soon", metric="perplexity", value=11.0, timesteps=8, latency_timesteps=8),
    ]
    results = Results("m", "d", 0, rows, extra={"options": {"stage1": "none"}})
    assert headline(results) == (
        "3 conversions of m, side by side. Within 16 timesteps of latency soon (T = 8) is best: perplexity 11.00 where the "
        "original has 10.00 (×1.100)."
    )
    assert headline(Results("m", "d", 0, rows[:2])) == "1 conversions of m, side by side."


def test_a_recipe_says_what_is_compared(tmp_path: Path) -> None:
    made = options(tmp_path).base
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"model: {made.model}\ndata: {made.data}\nlevels: 4\ncoding: rate\ntimesteps: [2, 4]\nstage1: none\nlength: 16\n"
        "calibration_sequences: 4\neval_sequences: 4\ncompare: {methods: [sta, qcfs], timesteps: [2]}\n"
    )
    asked = ["compare", f"--recipe={recipe}", f"--out={made.out}", "--json", "--quiet"]
    found = json.loads(CliRunner().invoke(app, asked, catch_exceptions=False).stdout)
    assert [row.get("method", row["name"]) for row in found["rows"]] == ["ann", "qcfs", "sta", "qcfs"]
    assert [row.get("levels") for row in found["rows"]] == [None, 4, 4, 4]
    assert {name: found["extra"]["options"][name] for name in ("activation", "stage1", "prefix")} == {
        "activation": "keep", "stage1": "none", "prefix": [],
    }  # fmt: skip
    more = CliRunner().invoke(app, [*asked, "--methods=las", "--timesteps=4"], catch_exceptions=False).stdout
    assert [(row["method"], row["timesteps"]) for row in json.loads(more)["rows"][2:]] == [("las", 4)]


def test_a_method_that_fails_costs_its_row_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True

    def build(*args: Any) -> None:
        if broken:
            raise ZeroDivisionError("no such luck")
        methods()["qcfs"].build(*args)

    monkeypatch.setattr(method, "_METHODS", methods())
    register(Method("mine", "my own", "nowhere", "qcfs", build, methods()["qcfs"].place))
    rows = run_comparison(options(tmp_path, methods=("mine", "qcfs"), timesteps=(2,))).rows
    assert rows[2].value is None
    assert re.fullmatch(r"ZeroDivisionError: no such luck \(test_compare.py, line \d+\)", str(rows[2].error))
    assert rows[3].value is not None
    table = (tmp_path / "out" / "compare.html").read_text()
    assert "mine, T = 2: not measured, because ZeroDivisionError" in table
    broken = False
    rows = run_comparison(options(tmp_path, methods=("mine", "qcfs"), timesteps=(2,))).rows
    assert rows[2].value == rows[3].value


def test_from_the_command_line(tmp_path: Path) -> None:
    made = options(tmp_path).base
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    asked = ["compare", f"--model={made.model}", f"--data={made.data}", f"--out={made.out}", "--methods=fas-rate,las"]
    done = CliRunner().invoke(app, [*asked, "--timesteps=2", "--json", "--quiet", *flags], catch_exceptions=False)
    rows = json.loads(done.stdout)["rows"]
    assert [row.get("method") for row in rows] == [None, None, "fas-rate", "las"]
    wanted = {
        "method",
        "coverage",
        "timesteps",
        "latency_timesteps",
        "metric",
        "value",
        "spikes_per_neuron",
        "seconds_convert",
    }
    assert all(wanted <= set(row) for row in rows[2:])
    plain = CliRunner().invoke(app, [*asked, "--timesteps=2", "--quiet", *flags], catch_exceptions=False).stdout
    assert "latency" in plain
    assert "s to convert" in plain


def test_rounds_are_paid_for_and_do_not_make_more_analog() -> None:
    model = tiny.ann("llama").eval()
    batch = tiny.inputs_for(model, 4)
    config = SpikingConfig(coverage="linear", levels=8, timesteps=4)
    model = convert(prepare(model, config, [batch]))
    once, thrice = (priced(model, config, batch, spent) for spent in (1.0, 3.0))
    for name in once["energies"]:
        assert thrice["energies"][name] == pytest.approx(3 * once["energies"][name])
    assert thrice["energy_strict_pj"] == pytest.approx(3 * once["energy_strict_pj"])
    assert thrice["energy_ann_pj"] == once["energy_ann_pj"]
    assert thrice["analog"]["functions"] == pytest.approx(3 * once["analog"]["functions"])
    assert thrice["analog"]["macs"] == once["analog"]["macs"]
    weights = sum(value.nbytes for value in [*model.parameters(), *model.buffers()]) / 2**20
    assert once["memory_mib"] > weights


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method 'none' is not known"):
        options(tmp_path, methods=("none",))
    with pytest.raises(ConfigError, match=r"timesteps \[2, 2\] are not valid"):
        options(tmp_path, timesteps=(2, 2))


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(1, 9)), min_size=1, max_size=12))
def test_none_on_the_front_is_beaten_and_all_others_are(points: list[tuple[int, float]]) -> None:
    rows = [
        Row("snn", method=str(i), latency_timesteps=c, metric="perplexity", value=v) for i, (c, v) in enumerate(points)
    ]
    best = front(rows, lambda row: row.latency_timesteps)
    for row in rows:
        better = [
            o for o in rows if (o.latency_timesteps or 0) <= (row.latency_timesteps or 0) and badness(o) < badness(row)
        ]
        assert not (row in best and better)
        same = any(o.latency_timesteps <= row.latency_timesteps and o.value == row.value for o in best)  # type: ignore[operator]
        assert better or same


def test_csv_has_all_fields_and_shares_count_upwards() -> None:
    row = Row("snn", method="a", metric="accuracy", value=0.5, metrics={"accuracy": 0.5})
    assert badness(row) == -0.5
    row.analog, row.energies, row.memory_mib = {"macs": 0.25, "functions": 8.0}, {"with memory": 2.5}, 3.5
    others = [Row("control", value=0.75), Row("qcfs", value=0.5625)]
    (line,) = csv.DictReader(as_csv(Results("m", "d", 0, [*others, row])).splitlines())
    assert list(line) == list(FIELDS)
    assert {name: value for name, value in line.items() if value} == {
        "method": "a", "metric": "accuracy", "value": "0.5", "against_control": "-0.25", "against_quantized": "-0.0625",
        "energy_with_memory": "2.5", "analog_macs": "0.25", "analog_functions": "8.0", "memory_mib": "3.5",
    }  # fmt: skip


def test_the_page_describes_every_method_and_its_example_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = DOCS.read_text()
    about, measured = text.split("## Measured")
    for part in (about, measured):
        assert sorted(re.findall(r"^\| `([a-z-]+)` \|", part, re.MULTILINE)) == sorted(methods())
    placed = " ".join(re.findall(r"^\* (`.*?): ", measured, re.MULTILINE))
    assert sorted(re.findall(r"`([a-z-]+)`", placed)) == sorted(methods())
    monkeypatch.setattr(method, "_METHODS", methods())
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    exec(compile(code[1], str(DOCS), "exec"), {})
    rows = run_comparison(options(tmp_path, methods=("halved",), timesteps=(4,))).rows
    assert rows[2].error is None
    assert rows[2].method == "halved"
