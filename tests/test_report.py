"""Results survive the disk, the table says what a reader needs, the page is whole and loads nothing."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fas.errors import FasError
from fas.report import plots, words
from fas.report.html import headline, headline_row, render, write_report
from fas.report.results import Results, Row, this_command
from fas.report.table import columns_of, plain_table, print_results

BY_SITE = {
    f"transformer.h.{layer}.{kind}": 0.1 * layer + 0.2 for layer in range(3) for kind in ("ffn_input", "ffn_hidden")
}


def snn(value: float, timesteps: int, **more: object) -> Row:
    common = {"coverage": "linear", "levels": 8, "metric": "perplexity", "schedule": "synchronous", "stage2": True}
    return Row("snn", timesteps=timesteps, value=value, **(common | {"coding": "rate", "rows": "mean"} | more))


@pytest.fixture
def results() -> Results:
    rows = [
        Row("ann", metric="perplexity", value=61.9, tokens=1000),
        Row("control", metric="perplexity", value=60.0, stored=True),
        Row("qcfs", metric="perplexity", value=60.3, coverage="linear", levels=8),
        snn(60.3, 8, schedule="layerwise", coding=None, rows=None, spikes_per_neuron=3.0),
        snn(63.0, 2),
        snn(60.6, 4, spikes_per_neuron=0.9, by_site=BY_SITE),
        snn(60.5, 4, coding="sigma_delta", rows=None, steps=[4, 2, 2, 1], stage2=False, spikes_per_neuron=1.5),
        snn(64.2, 4, rows="step"),
    ]
    samples = [{"prompt": "A <list>", "ann": "A <list> is mutable", "snn": "A <list> & more"}]
    return Results("tiny", "text.txt", 7, rows, extra={"samples": samples, "seconds": 12.5, "options": {"lr": 0.1}})


def test_results_survive_the_disk(results: Results, tmp_path: Path) -> None:
    path = results.write(tmp_path / "deep" / "results.json")
    assert Results.read(path) == results
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]
    stored = json.loads(path.read_text())
    assert set(stored) == {"model", "data", "seed", "versions", "command", "rows", "extra"}
    assert stored["rows"][0] == {"name": "ann", "metric": "perplexity", "value": 61.9, "tokens": 1000}
    assert {"fas", "python", "torch", "transformers"} <= set(stored["versions"])


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    path = Results("m", "d", 0, [Row("ann", value=math.inf, loss=math.nan)]).write(tmp_path / "r.json")
    row = Results.read(path).rows[0]
    assert row.value == math.inf
    assert math.isnan(row.loss)


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": []}', '{"rows": [{"name": "ann", "energy": 1}]}'])
def test_other_files_are_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(FasError, match=r"other\.json cannot be read as results"):
        Results.read(path)


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/opt/venv/bin/fas", "generate", "out", "--prompt", "two words"])
    assert this_command() == "fas generate out --prompt 'two words'"


def test_table_says_what_a_reader_needs(results: Results) -> None:
    text = plain_table(results)
    for phrase in (
        "rate (step rows, the paper's)",
        "×1.010",
        "4,2,2,1",
        "layerwise",
        "simulation",
        "control (fine-tuned ANN) *",
    ):
        assert phrase in text
    assert "coverage linear, L = 8" in text
    lines = text.splitlines()
    assert max(map(len, lines)) < 140
    stage2 = dict(zip([row.timesteps for row in results.rows], columns_of(results)[4].cells, strict=True))
    assert stage2[8] == ""  # the layerwise schedule has no time to calibrate


def test_control_may_be_the_ann(results: Results) -> None:
    results.rows[1].value = results.rows[0].value
    assert words.model_label(results.rows[1], results) == "control (= ANN)"


def test_without_control_the_ann_is_the_measure(results: Results) -> None:
    del results.rows[1]
    assert "vs ANN" in plain_table(results)


def test_several_coverages_get_a_column(results: Results) -> None:
    results.rows[4].coverage = "ffn"
    assert "coverage" in [column.title for column in columns_of(results)]


def test_rich_table_on_a_terminal(results: Results) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    print_results(results, terminal)
    assert "×1.010" in terminal.getvalue()


def test_headline_takes_the_fewest_timesteps_close_to_the_control(results: Results) -> None:
    best = headline_row(results)
    assert best is results.rows[6]
    assert "sigma-delta, T = 4" in headline(results, best)
    assert "×1.008" in headline(results, best)
    results.rows = [
        row for row in results.rows if (row.timesteps, row.rows) in ((2, "mean"), (4, "step"), (None, None))
    ]
    assert headline_row(results).timesteps == 2  # none is within 2 %, so the closest


def test_page_is_whole_and_loads_nothing(results: Results, tmp_path: Path) -> None:
    page = write_report(results, tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.search(r'(src|href)="(http|//|/)', page.replace('xlink:href="#', "")) is None
    assert page.count("<svg") == 2
    assert "A &lt;list&gt;" in page
    assert "&amp; more" in page
    for fact in ("How these figures were made", "text.txt", "12.5", "lr=0.1", "1,000 tokens"):
        assert fact in page


def test_figures_are_the_same_every_time_and_follow_the_page(results: Results) -> None:
    first, second = plots.quality_over_time(results), plots.quality_over_time(results)
    assert first == second
    assert "currentColor" in first
    ElementTree.fromstring(first)
    assert plots.spikes_by_layer(results.rows[0]) is None


def test_a_page_without_spikes_is_possible() -> None:
    assert "Measurements of m" in render(Results("m", "d", 0, [Row("ann", metric="loss", value=0.9)]))


def at(task: str, name: str, value: float, **more: object) -> Row:
    return Row(name, task, metric="acc", value=value, metrics={"acc": value}, **more)


def test_accuracies_are_compared_in_points_with_the_control_of_their_task() -> None:
    rows = [
        at("piqa", "ann", 0.5, loss=2.0), at("piqa", "control", 0.5, loss=2.1, stderr=0.03, items=200),
        at("piqa", "snn", 0.45, truncated=3, items=200), at("copa", "control", 0.0), at("copa", "snn", 0.7),
        at("wsc", "snn", 0.7), Row("snn", "boolq", error="no room"),
        Row("control", "wiki", metric="word_perplexity", value=20.0, metrics={"word_perplexity": 20.0}),
        Row("snn", "wiki", metric="word_perplexity", value=30.0, metrics={"word_perplexity": 30.0}),
    ]  # fmt: skip
    results = Results("tiny", "tasks", 0, rows)
    said = [words.ratio_label(row, results) for row in rows]
    assert said == ["+0.0", "", "-5.0", "", "+70.0", "", "", "", "×1.500"]
    assert words.model_label(rows[1], results) == "control (fine-tuned ANN)"  # the same accuracy, another model
    assert words.value_label(rows[1], results) == "0.5000 ±0.030 (acc)"
    text = " ".join(plain_table(results).split())
    assert "piqa: 3 of 200 items were longer than the context and were cut at their left." in text
    assert "boolq, SNN: not measured, because no room" in text
    columns = {column.title: column.cells for column in columns_of(results)}
    assert columns["task"][2:4] == ["piqa", "copa"]
    assert columns["items"][:3] == ["", "200", "200"]
    one = Results("tiny", "piqa", 0, rows[:3])
    assert "task" not in {column.title for column in columns_of(one)}


def test_the_best_accuracy_is_the_highest() -> None:
    rows = [at("x", "control", 0.8)]
    rows += [at("x", "snn", value, timesteps=t, schedule="synchronous") for value, t in ((0.5, 2), (0.7, 4), (0.6, 8))]
    assert headline_row(Results("tiny", "x", 0, rows)) is rows[2]


def test_paths_of_this_machine_are_no_titles() -> None:
    here = Results("/home/someone/work/sst2-control", "/data/glue/sst2/train.tsv", 0, [Row("ann", "loss", 1.0)])
    assert words.title(here) == "work/sst2-control on sst2/train.tsv"
    assert headline(here, None) == "Measurements of work/sst2-control."
    assert words.provenance(here)["model"] == "/home/someone/work/sst2-control"  # but the whole path is said
    hub = Results("org/model", "stories.txt", 0, [Row("ann", "loss", 1.0)])
    assert words.title(hub) == "org/model on stories.txt"
