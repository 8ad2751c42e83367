"""The ``fas`` command from outside: help, bad input, and the two commands that train nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from fas.cli import main
from fas.cli.convert import options_from
from fas.cli.show import Lines, progress_on
from fas.config import SpikingConfig
from fas.conversion import convert, prepare
from fas.errors import ConfigError
from fas.pipeline.recipes import read_recipe
from fas.tasks.builtin import model_path

COMMANDS = ("demo", "convert", "tune", "eval", "generate", "inspect", "ablate", "recipes")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ann``, ``snn`` (with its control), ``bert`` and ``bloom``, all tiny and random."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    ann = GPT2LMHeadModel(config)
    bert = BertModel(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    bloom = BloomForCausalLM(BloomConfig(hidden_size=8, n_layer=1, n_head=1, vocab_size=8))
    for model, name in ((ann, "ann"), (ann, "snn/control"), (bert, "bert"), (bloom, "bloom")):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    batches = [{"input_ids": torch.randint(0, len(tokenizer), (2, 16))}]
    convert(prepare(ann, SpikingConfig(levels=8, timesteps=4), batches)).save_pretrained(root / "snn")
    tokenizer.save_pretrained(root / "snn")
    return root


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command with bad input leaves."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("fas: error: ")
    return line


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fas.cli import main\n"
        f"assert all(main([*c, '--help']) == 0 for c in [[], *([n] for n in {COMMANDS})])\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'datasets'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Example: fas") == len(COMMANDS)


def test_an_error_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    code = "import sys\nfrom fas.cli import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", tmp_path / "none", "--prompt", "x"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "nothing"),
        (["generate"], "DIR"),
        (["generate", "{root}/none", "--prompt", "x"], "none"),
        (["generate", "{root}/ann", "--prompt", "x"], "not a converted model"),
        (["generate", "builtin", "--prompt", "x"], "not a converted model"),
        (["generate", "{root}/snn", "--prompt", "x", "--timesteps", "0"], "timesteps=0"),
        (["generate", "{root}/snn", "--prompt", "x", "--timesteps", "9999"], "timesteps=9999"),
        (["generate", "{root}/snn", "--prompt", "x", "--coding", "morse"], "coding='morse'"),
        (["generate", "{root}/snn", "--prompt", "x", "--cache", "none"], "cache='none'"),
        (["generate", "{root}/snn", "--prompt", "x", "--dtype", "int3"], "dtype='int3'"),
        (["generate", "{root}/snn", "--prompt", "x", "--temperature", "0.5"], "--sample"),
        (["generate", "{root}/snn", "--prompt", "x", "--sample", "--top-p", "2"], "top_p=2.0"),
        (["generate", "{root}/snn", "--prompt", "x", "--max-new-tokens", "64"], "context of 64"),
        (["eval", "{root}/ann", "--data", "builtin"], "not a converted model"),
        (["eval", "{root}/snn", "--data", "builtin", "--timesteps", "2,x"], "2,x"),
        (["convert", "--model", "builtin"], "--data and --out"),
        (["convert", "--model", "{root}/none", "--data", "builtin", "--out", "{root}/o"], "none"),
        (
            ["convert", "--model", "{root}/bert", "--data", "builtin", "--out", "{root}/o"],
            "no causal language model",
        ),
        (["convert", "--model", "{root}/ann", "--data", "{root}/none.txt", "--out", "{root}/o"], "none.txt"),
        (
            ["convert", "--model", "builtin", "--data", "builtin", "--out", "{root}/o", "--coverage", "all"],
            "coverage='all'",
        ),
        (["convert", "--model", "builtin", "--data", "builtin", "--out", "{root}/o", "--levels", "0"], "levels=0"),
        (
            ["convert", "--model", "builtin", "--data", "builtin", "--out", "{root}/o", "--timesteps", "0"],
            "timesteps=0",
        ),
        (["inspect", "{root}/none"], "none"),
        (["inspect", "{root}/bloom"], "BloomForCausalLM has no part"),
        (["inspect", "{root}/ann", "--coverage", "all"], "coverage='all'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(folders: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    before = sorted(folders.iterdir())
    assert says in error_of(capsys, *[argument.replace("{root}", str(folders)) for argument in arguments])
    assert sorted(folders.iterdir()) == before  # nothing half-written


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAS_DEBUG", "1")
    with pytest.raises(ConfigError):
        main(["convert", "--model", "builtin"])


def test_generate_prints_text_and_counts_spikes(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folders / "snn"), "--prompt", "The list", "--max-new-tokens", "5", "--ann"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("SNN:\nThe list")
    assert "\ncontrol:\nThe list" in captured.out
    assert "T = 4" in captured.err
    assert "spikes/neuron" in captured.err


@pytest.mark.parametrize("more", [["--num-beams", "2"], ["--sample", "--temperature", "0.8"], ["--cache", "settled"]])
def test_generate_as_json_repeats(folders: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    arguments = ["generate", str(folders / "snn"), "--prompt", "The list", "--max-new-tokens", "4", "--coding", "rate"]
    answers = []
    for _ in range(2):
        assert main([*arguments, *more, "--timesteps", "3", "--seed", "5", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    first, second = answers
    assert first["text"] == second["text"]
    assert first["spikes_per_neuron"] == second["spikes_per_neuron"] > 0
    assert (first["config"]["coding"], first["config"]["timesteps"], first["new_tokens"]) == ("rate", 3, 4)


def test_inspect_agrees_with_the_conversion(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for name in ("ann", "snn"):
        assert main(["inspect", str(folders / name), "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    described = json.loads((folders / "snn" / "config.json").read_text())["quantization_config"]["sites"]
    assert sum(group["count"] for group in found["ann"]["sites"]) == len(described) == 8
    assert found["snn"]["sites"] == found["ann"]["sites"]
    assert found["snn"]["parameters"] == GPT2LMHeadModel.from_pretrained(folders / "ann").num_parameters()
    assert found["snn"]["converted"]["spiking"]["timesteps"] == 4
    assert found["ann"]["converted"] == {}
    assert found["ann"]["analog"]["LayerNorm"] == 5


def test_inspect_knows_encoders(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folders / "bert")]) == 0
    text = capsys.readouterr().out
    assert "BertModel, family bert" in text
    assert "pooler_input" in text
    assert "a step of Stage 1" in text


def test_a_folder_without_a_tokenizer_is_refused(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers makes one of five special tokens for it, and the text would be read as unknown, word for word."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**shape)).save_pretrained(tmp_path / "bare")
    rows = "".join(f"{i % 2}\tfilm {i}\n" for i in range(20))
    (tmp_path / "text.tsv").write_text("label\tsentence\n" + rows)
    asked = ["convert", "--task=sst2", f"--model={tmp_path / 'bare'}", f"--data={tmp_path / 'text.tsv'}"]
    assert main([*asked, f"--out={tmp_path / 'out'}", "--quiet"]) == 2
    assert re.search(
        r"bare has no tokenizer: what was found knows \d special tokens and no word", capsys.readouterr().err
    )


def test_inspect_knows_classifiers_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(**shape, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["logits"] == 4 * 8 * 2  # of labels


def test_inspect_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "builtin", "--coverage", "ffn"]) == 0
    text = capsys.readouterr().out
    assert "4 sites become spikes with coverage ffn" in text
    assert "Conv1D (not covered)" in text
    assert "transformer.h.*.ffn_hidden" in text


def test_recipe_is_overruled_by_flags(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: builtin\ndata: builtin\nout: somewhere\nlevels: 4\ntimesteps: [2, 4]\nseed: 3\n")
    options = options_from({"levels": 8, "seed": None}, read_recipe(recipe))
    assert (options.levels, options.timesteps, options.seed, options.out) == (8, (2, 4), 3, Path("somewhere"))
    recipe.write_text("colour: red\n")
    with pytest.raises(ConfigError, match="colour"):
        options_from({}, read_recipe(recipe))


def test_plain_progress_is_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = progress_on()
    assert isinstance(progress, Lines)
    progress.start("training", 1000)
    for _ in range(1000):
        progress.advance(note="loss 1.0")
    progress.done("loss 1.0")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training"
    assert lines[-1].startswith("  loss 1.0 (")
    assert len(lines) <= 12
    progress_on(quiet=True).note("nothing")
    assert capsys.readouterr().err == ""


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fas", "recipes", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)
