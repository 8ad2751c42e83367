"""Sentences and tables that say what is so: sizes, names, the nearest relative, and nothing cut off."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import folders
import pytest
import tiny
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, XLMRobertaConfig, XLMRobertaForSequenceClassification

import fas
from fas.cli import main
from fas.errors import UnsupportedModelError, with_extra
from fas.pipeline import machine
from fas.report.results import Results, Row
from fas.report.table import columns_of, fitting, print_results


def results() -> Results:
    steps = [8, 4, 4, 2, 4, 2, 1, 1]
    rows = [Row("ann", value=9.0), Row("control", value=9.5)]
    for count in (2, 4, 8):
        rows += [
            Row("snn", coding="sigma_delta", schedule="synchronous", steps=steps[:count], timesteps=count, stage2=after,
                value=12.0 - after, spikes_per_neuron=1.0)
            for after in (False, True)
        ]  # fmt: skip
    for row in rows:
        row.metric = "perplexity"
    return Results("MODEL", "DATA", 0, rows)


def test_a_narrow_table_leaves_columns_out_whole_and_says_which() -> None:
    columns = columns_of(results())
    kept, left_out = fitting(columns, 80)
    assert sum(column.width + 2 for column in kept) <= 80
    assert left_out[0] == "schedule, steps"
    assert {"model", "T", "Stage 2", "vs control"} <= {column.title for column in kept}
    assert "coding" in left_out  # which is the same in all rows
    two = results()
    two.rows[-1].coding = "rate"
    assert "coding" in {column.title for column in fitting(columns_of(two), 80)[0]}
    assert fitting(columns, 1000) == (columns, [])


def test_a_narrow_terminal_folds_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    shown = Terminal()
    assert Console(file=shown).width == 80
    print_results(results(), shown)
    text = shown.getvalue()
    assert "…" not in text
    assert text.count("SNN  ") == 6  # a line each
    assert text.count("after   ") == text.count("before  ") == 3
    assert "Left out, for the width of this terminal: schedule, steps, coding; --json has" in " ".join(text.split())


def test_recipes_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "bert-sst2" in lines
    assert max(map(len, lines)) < 80


@pytest.mark.parametrize("short", ["-h", "--help"])
def test_short_options(short: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([short]) == 0
    assert "FAS_DEBUG=1" in capsys.readouterr().out
    assert main(["generate", short]) == 0
    assert "--prompt" in capsys.readouterr().out
    assert main(["-V"]) == 0
    assert capsys.readouterr().out.startswith("fas ")


def test_a_dry_run_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", "--model", "builtin", "--data", "builtin", "--out", "never", "--dry-run"]
    assert main(command) == 0
    assert "does not fit" not in capsys.readouterr().out
    monkeypatch.setattr("fas.pipeline.dry_run.memory_of", lambda device: 1 << 20)
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "This does not fit here: it needs " in text
    assert "and this machine has 0.0 GiB" in text


def test_a_container_has_what_it_may_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_LIMITS", (limit, tmp_path / "none"))
    whole = machine.memory_of(fas_cpu())
    assert whole > 1 << 28
    limit.write_text("max\n")
    assert machine.memory_of(fas_cpu()) == whole
    limit.write_text(f"{1 << 20}\n")
    assert machine.memory_of(fas_cpu()) == 1 << 20


def fas_cpu():
    import torch

    return torch.device("cpu")


def test_the_nearest_relative_is_named() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = XLMRobertaForSequenceClassification(XLMRobertaConfig(**shape, vocab_size=tiny.VOCAB))
    with pytest.raises(UnsupportedModelError, match=r"its nearest relative is roberta; .*docs/adding-a-family\.md"):
        fas.prepare(model, fas.SpikingConfig(), [{"input_ids": tiny.tokens()}])


def test_figures_are_not_asked_for_in_the_place_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, file / "below"):
        for command in (["energy", "no-such-folder"], ["eval", "no-such-folder", "--diagnose"]):
            assert main([*command, "--plots", str(place)]) == 2
            assert "is a file, and figures need a folder" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_a_folder_without_tokenizer_says_so_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.ann("llama")
    assert isinstance(model.config, LlamaConfig)
    model.save_pretrained(tmp_path / "bare")
    assert main(["convert", "--model", str(tmp_path / "bare"), "--data", "builtin", "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert "bare has no tokenizer" in said
    assert "tokenizer.json and tokenizer_config.json beside config.json" in said


def test_data_is_refused_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ann, text = folders.save_ann(tmp_path / "ann"), str(tmp_path / "nowhere.txt")
    snn = tmp_path / "snn"
    AutoTokenizer.from_pretrained(ann).save_pretrained(snn)
    tiny.snn("gpt2").save_pretrained(snn)
    for place in ("source.load_ann", "evaluate.load_spiking"):
        monkeypatch.setattr(f"fas.pipeline.{place}", lambda *_, **__: pytest.fail("weights were loaded"))
    for command in (["convert", "--model", ann, "--out", str(tmp_path / "out")], ["eval", str(snn)]):
        assert main([*command, "--data", text]) == 2
        assert "nowhere.txt" in capsys.readouterr().err


def test_extras_are_installed_from_a_clone() -> None:
    assert with_extra("lora") == "in a clone of FAS: pip install '.[lora]'"
