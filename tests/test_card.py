"""The card of a saved folder: what it says, and whose it is."""

from __future__ import annotations

import json
from pathlib import Path

import folders
import pytest
import tiny
import yaml
from transformers import AutoModelForCausalLM

from fas.calibration import calibrate_folder
from fas.cli import main
from fas.conversion.card import write_card
from fas.tasks.text import load_text


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_a_saved_folder_says_what_it_is_and_how_it_is_loaded(tmp_path: Path) -> None:
    model = tiny.snn("llama", "linear")
    model.config._name_or_path = "owner/name"
    model.save_pretrained(tmp_path)
    text = card_of(tmp_path)
    front = yaml.safe_load(text.split("---")[1])
    assert (front["library_name"], front["base_model"]) == ("fas", "owner/name")
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["spiking"]
    for part in (f"T = {config['timesteps']}", f"L = {config['levels']}", "`linear`", "owner/name", "Nothing, when"):
        assert part in text
    code = text.split("```python\n")[1].split("```")[0].replace('"…"', repr(str(tmp_path)))
    scope: dict[str, object] = {}
    exec(code, scope)
    assert type(scope["model"]).__name__ == "LlamaForCausalLM"


def test_a_card_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine\n")
    tiny.snn("gpt2").save_pretrained(tmp_path)
    assert card_of(tmp_path) == "mine\n"


def test_an_edited_card_stays_and_an_untouched_one_is_renewed(tmp_path: Path) -> None:
    model = tiny.snn("gpt2")
    model.save_pretrained(tmp_path)
    model.set_timesteps(3)
    model.save_pretrained(tmp_path)
    assert "T = 3" in card_of(tmp_path)
    edited = card_of(tmp_path).replace("## What", "My words.\n\n## What")
    (tmp_path / "README.md").write_text(edited)
    model.set_timesteps(5)
    model.save_pretrained(tmp_path)
    assert card_of(tmp_path) == edited


def test_a_folder_made_of_a_converted_one_names_the_first(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    model = tiny.snn("gpt2")
    model.config._name_or_path = "owner/name"
    model.save_pretrained(first)
    AutoModelForCausalLM.from_pretrained(first).save_pretrained(second)
    assert "base_model: owner/name" in card_of(second)
    calibrate_folder(second, third, [{"input_ids": tiny.tokens()}], timesteps=2)
    assert "base_model: owner/name" in card_of(third)
    assert "sigma_delta_" in card_of(third)


def test_a_local_model_is_named_without_its_place(tmp_path: Path) -> None:
    place = folders.save_ann(tmp_path / "secret" / "my-model")
    write_card_of(tmp_path / "snn", place)
    text = card_of(tmp_path / "snn")
    assert "`my-model`" in text
    assert "secret" not in text
    assert "base_model" not in text


def write_card_of(folder: Path, base: str) -> None:
    tiny.snn("gpt2").save_pretrained(folder)
    (folder / "README.md").unlink()
    write_card(folder, base)


@pytest.mark.parametrize("name", ["a\nb: c", "x`|<script>"])
def test_odd_names_do_not_break_the_card(name: str, tmp_path: Path) -> None:
    write_card_of(tmp_path, name)
    assert yaml.safe_load(card_of(tmp_path).split("---")[1])["library_name"] == "fas"
    assert "<script>" not in card_of(tmp_path)


def test_a_conversion_says_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ann, data, out = tmp_path / "ann", folders.save_text(tmp_path / "a.txt"), tmp_path / "out"
    folders.save_ann(ann)
    arguments = [
        "convert",
        "--model",
        str(ann),
        "--data",
        data,
        "--out",
        str(out),
        "--timesteps",
        "2",
        "--stage1",
        "none",
    ]
    assert main([*arguments, "--length", "16", "--calibration-sequences", "4", "--eval-sequences", "4"]) == 0
    text = card_of(out)
    assert "| SNN | sigma-delta" in text
    assert "`ann`" in text
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert f"{rows[-1]['value']:.2f}"[:4] in text
    assert main(["verify", str(out)]) == 0


def test_the_card_is_no_data(tmp_path: Path) -> None:
    tiny.snn("gpt2").save_pretrained(tmp_path)
    folders.save_text(tmp_path / "text.txt")
    (tmp_path / "config.json").unlink()
    (tmp_path / "fas_manifest.json").unlink()
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    assert not any("FAS" in text for text in load_text(str(tmp_path)).training)
