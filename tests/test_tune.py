"""``fas tune``: weights trained through simulated time, kept whole, and reported apart from what the paper does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import folders
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

import fas
from fas.cli import main
from fas.errors import CheckpointError, ConfigError, DataError, FasError
from fas.neurons import NeuronParameters
from fas.pipeline import tune
from fas.pipeline.calibrate import CalibrateOptions, calibrate_again
from fas.pipeline.convert import run_conversion
from fas.pipeline.evaluate import evaluate_folder
from fas.pipeline.load import load_ann, load_spiking
from fas.pipeline.options import ConvertOptions
from fas.pipeline.tune import TuneOptions, tune_folder
from fas.progress import Silent
from fas.report import plots, words
from fas.report.html import render
from fas.report.results import Results
from fas.report.table import plain_table
from fas.runtime.control import calibrated_keys, clock_of, sites_of
from fas.tasks.language_modeling import Blocks, encode_blocks, evaluate
from fas.tasks.text import load_text
from fas.training import Stage1Options, tune_through_time
from fas.training.stage1 import Stage1Trainer

CONVERTED = {
    "levels": 4, "codings": ("rate", "sigma_delta"), "timesteps": (2, 4), "stage1_steps": 3, "batch_size": 2, "length": 16,
    "calibration_sequences": 4, "align_steps": 0, "global_steps": 0, "fit_steps": 2, "eval_sequences": 4,
}  # fmt: skip
KEYS = ["rate_mean_2", "rate_mean_4", "sigma_delta_2_1", "sigma_delta_2_1_1_1"]


class Notes(Silent):
    """What was said, and in what order things began."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.begun: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def start(self, title: str, total: int | None = None) -> None:
        self.begun.append(title)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("tune")
    model, data = folders.save_ann(root / "ann"), folders.save_text(root / "text.txt")
    run_conversion(ConvertOptions(model=model, data=data, out=root / "snn", **CONVERTED))
    return root


def options(place, out, **changes) -> TuneOptions:
    usual = {"timesteps": 2, "coding": "sigma_delta", "steps": 25, "lr": 2e-3}
    return TuneOptions(str(place / "snn"), str(place / "text.txt"), place / out, **(usual | changes))


@pytest.fixture(scope="module")
def tuned(place):
    """Results, notes, and the logits of the tuned model as it was in memory."""
    ids, seen, write = tiny.tokens(), {}, tune._write

    def watched(ready, results):
        with torch.no_grad():
            seen["logits"] = ready.model(input_ids=ids).logits
        write(ready, results)

    progress = Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "_write", watched)
        results = tune_folder(options(place, "tuned"), progress)
    return results, progress, seen["logits"]


def blocks_of(place, tokenizer, part="training"):
    return encode_blocks(tokenizer, getattr(load_text(str(place / "text.txt")), part), 16)


def test_the_loss_through_the_snn_falls_on_training_text(place, tuned):
    losses = []
    for folder in ("snn", "tuned"):
        model, tokenizer = load_spiking(str(place / folder))
        model.set_timesteps(2, coding="sigma_delta")
        losses.append(evaluate(model, blocks_of(place, tokenizer)[:16]).loss)
    assert losses[1] < losses[0] - 0.5


def test_weights_and_neurons_move_and_stay_in_their_bounds(place, tuned):
    before, after = (load_file(place / folder / "model.safetensors") for folder in ("snn", "tuned"))
    kept = {name: value for name, value in after.items() if ".neurons." not in name}
    assert set(kept) == {name for name in before if ".neurons." not in name}
    moved = {name for name in kept if not torch.equal(before[name], kept[name])}
    assert all(name in moved for name in kept if name.endswith(("weight", "bias")))
    assert not any(name.endswith("log_scale") for name in moved)  # calibrated neurons do not read λ
    own = {name for name in after if ".neurons." in name}
    assert {name.split(".neurons.")[1].split(".")[0] for name in own} == {"sigma_delta_2_1"}
    values = {name for name in own if name.endswith(("log_threshold", "v_init"))}
    assert values
    assert {name for name in own if not torch.equal(before[name], after[name])} == values
    model, _ = load_spiking(str(place / "tuned"))
    neurons = [part for part in model.modules() if isinstance(part, NeuronParameters)]
    assert neurons
    assert all(bool((entry.threshold > 0).all()) for entry in neurons)
    assert all(bool(((entry.v_init >= 0) & (entry.v_init <= 1)).all()) for entry in neurons)


def test_neurons_of_other_times_are_left_out_and_that_is_said(place, tuned):
    results, progress, _ = tuned
    model, _ = load_spiking(str(place / "tuned"))
    assert calibrated_keys(sites_of(model).values()) == ["sigma_delta_2_1"]
    config = clock_of(model).config
    assert (config.coding, config.timesteps, config.folds_time) == ("sigma_delta", 2, True)
    left_out = [key for key in KEYS if key != "sigma_delta_2_1"]
    assert results.extra["tuning"]["left_out"] == left_out
    (note,) = [note for note in progress.notes if "left out" in note]
    assert all(key in note for key in left_out)
    assert any("control did not have these 25 steps" in note for note in progress.notes)


def test_the_folder_gives_the_logits_of_the_model_in_memory(place, tuned):
    model, _ = load_spiking(str(place / "tuned"))
    with torch.no_grad():
        assert torch.equal(model(input_ids=tiny.tokens()).logits, tuned[2])
    assert not list(place.glob("*.new"))
    load_ann(str(place / "tuned" / "control"))


def test_rows_before_and_after_stand_beside_each_other(place, tuned):
    results, _, _ = tuned
    kinds = [(row.name, row.coding, row.timesteps, row.stage2, row.tuned) for row in results.rows]
    assert kinds == [
        ("ann", None, None, None, None), ("control", None, None, None, None), ("qcfs", None, None, None, None),
        ("snn", "sigma_delta", 2, True, None), ("qcfs", None, None, None, True), ("snn", "sigma_delta", 2, True, True),
    ]  # fmt: skip
    assert Results.read(place / "tuned" / "results.json").to_dict()["rows"] == results.to_dict()["rows"]
    converted = Results.read(place / "snn" / "results.json")
    then = {(row.name, row.coding, row.timesteps): row for row in converted.rows if row.schedule != "layerwise"}
    for row in results.rows[:4]:
        assert row.loss == pytest.approx(then[row.name, row.coding, row.timesteps].loss, rel=1e-6)
    tuning = results.extra["tuning"]
    assert (tuning["steps"], tuning["steps_of_the_control"], tuning["neurons"]) == (25, 0, "sigma_delta_2_1")
    assert tuning["neurons_lr"] == 10 * tuning["lr"]
    assert results.model == converted.model
    assert results.extra["evaluation"] == converted.extra["evaluation"]  # the text of the conversion, divided as then


def test_the_table_and_the_page_say_what_was_tuned(tuned):
    results, _, _ = tuned
    table = " ".join(plain_table(results).split())
    assert "SNN (weights tuned in time) sigma-delta" in table
    assert "QCFS model (of the tuned weights)" in table
    assert "25 more steps of training" in table
    assert "T = 2, weights tuned in time" in words.describe_snn(results.rows[-1])
    labels = plots.quality_over_time(results)
    assert labels is not None
    assert "sigma-delta, weights tuned in time" in labels
    assert "QCFS model (of the tuned weights)" in labels
    assert "weights tuned in time" in render(results)
    plain = replace(results, rows=[row for row in results.rows if not row.tuned])
    assert "tuned in time" not in " ".join(plain_table(plain).split())


def test_eval_of_a_tuned_folder_says_so_too(place, tuned):
    measured = evaluate_folder(place / "tuned", str(place / "text.txt"))
    assert [(row.name, row.tuned) for row in measured.rows] == [
        ("ann", None), ("control", None), ("qcfs", True), ("snn", True),
    ]  # fmt: skip
    for now, then in zip(measured.rows[2:], tuned[0].rows[4:], strict=True):
        assert now.loss == pytest.approx(then.loss, rel=1e-6)
    assert "25 more steps" in " ".join(words.notes(measured))
    assert [row.tuned for row in evaluate_folder(place / "snn", str(place / "text.txt")).rows].count(None) == 7


def test_same_seed_same_model_other_seed_another(place, tuned):
    again = tune_folder(options(place, "again"), Silent())
    other = tune_folder(options(place, "other", seed=1), Silent())
    assert [row.loss for row in again.rows] == [row.loss for row in tuned[0].rows]
    first, second, third = (load_file(place / name / "model.safetensors") for name in ("tuned", "again", "other"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)
    assert other.rows[3].loss == tuned[0].rows[3].loss


def test_only_training_text_is_trained_on(place, monkeypatch):
    seen = {}

    def caught(model, blocks, *rest):
        seen["blocks"] = blocks
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "tune_through_time", caught)
    with pytest.raises(KeyboardInterrupt):
        tune_folder(options(place, "text"), Silent())
    _, tokenizer = load_spiking(str(place / "snn"))
    assert torch.equal(seen["blocks"].tokens, blocks_of(place, tokenizer))
    assert not (place / "text").exists()
    assert not (place / "text.new").exists()


def test_the_optimizer_has_weights_and_neurons_but_no_scale(monkeypatch):
    model = calibrated(tiny.snn("gpt2", timesteps=3, levels=4))
    held = {}
    make = Stage1Trainer.create_optimizer

    def watched(self, *args, **kwargs):
        held["optimizer"] = make(self, *args, **kwargs)
        return held["optimizer"]

    monkeypatch.setattr(Stage1Trainer, "create_optimizer", watched)
    frozen = [site.log_scale.clone() for site in sites_of(model).values()]
    tune_through_time(model, Blocks(tiny.tokens(4, 8)), Stage1Options(steps=2, batch_size=2, lr=1e-3, scale_lr=1e-2))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    weights, neurons = ({names[id(p)] for p in group["params"]} for group in held["optimizer"].param_groups)
    assert weights == {name for name in names.values() if ".sites." not in name}
    assert neurons == {name for name in names.values() if name.endswith(("log_threshold", "v_init"))}
    assert [group["initial_lr"] for group in held["optimizer"].param_groups] == [1e-3, 1e-2]
    for site, before in zip(sites_of(model).values(), frozen, strict=True):
        assert torch.equal(site.log_scale, before)
        assert site.log_scale.requires_grad  # as it was
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.config.use_cache


def calibrated(model: PreTrainedModel) -> PreTrainedModel:
    fas.calibrate(model, [tiny.inputs_for(model)], fas.CalibrationOptions(fit_steps=1, align_steps=0, global_steps=0))
    return model


@pytest.mark.parametrize(("family", "coverage", "coding"), [("llama", "full", "sigma_delta"), ("opt", "ffn", "rate")])
def test_operators_keep_their_geometry_and_other_families_work(family, coverage, coding):
    model = calibrated(tiny.snn(family, coverage, timesteps=4, levels=4, coding=coding))
    groups = {name: site.log_scale.clone() for name, site in sites_of(model).items() if site.kind == "group"}
    assert bool(groups) == (coverage == "full")
    blocks = tiny.tokens(8, 8)
    before = evaluate(model, blocks).loss
    assert tune_through_time(model, Blocks(blocks), Stage1Options(steps=15, batch_size=4, lr=2e-3, scale_lr=2e-2)) == []
    assert evaluate(model, blocks).loss < before
    sites = sites_of(model)
    assert all(torch.equal(sites[name].log_scale, value) for name, value in groups.items())


def test_what_is_not_calibrated_is_left_as_it_is():
    model = tiny.snn("gpt2", timesteps=4, levels=4)
    with pytest.raises(FasError, match=r"sigma_delta_2_1_1_1 are not calibrated \(calibrated: none\)"):
        tune_through_time(model, Blocks(tiny.tokens()), Stage1Options(steps=1))
    calibrated(model)
    model.set_timesteps(4, schedule="layerwise")
    with pytest.raises(FasError, match=r"simulated time.*synchronous"):
        tune_through_time(model, Blocks(tiny.tokens()), Stage1Options(steps=1))
    assert clock_of(model).config.neuron_key in calibrated_keys(
        sites_of(model).values()
    )  # and yet no time is simulated


def test_a_bf16_folder_is_trained_in_fp32_and_stays_bf16(place, monkeypatch):
    shutil.copytree(place / "snn", place / "half")
    model, _ = load_spiking(str(place / "half"), dtype="bfloat16")
    model.save_pretrained(place / "half")
    run, seen = tune.tune_through_time, {}

    def watched(model, *rest):
        seen["dtype"] = model.dtype
        return run(model, *rest)

    monkeypatch.setattr(tune, "tune_through_time", watched)
    tune_folder(replace(options(place, "half-tuned", lr=1e-6, steps=2), folder=str(place / "half")), Silent())
    assert seen["dtype"] == torch.float32
    model, _ = load_spiking(str(place / "half-tuned"))
    assert model.dtype == torch.bfloat16


def test_distillation_from_control_ann_or_another(place):
    control = tune_folder(options(place, "d1", steps=1), Silent())
    assert control.extra["tuning"]["teacher"] == str(place / "snn" / "control")
    shutil.copytree(place / "snn", place / "no-control")
    shutil.rmtree(place / "no-control" / "control")
    mine = replace(options(place, "d2", steps=1), folder=str(place / "no-control"))
    assert tune_folder(mine, Silent()).extra["tuning"]["teacher"] == str(place / "ann")
    other = tune_folder(options(place, "d3", steps=1, teacher=str(place / "ann"), distill=1.0), Silent())
    assert [row.name for row in other.rows] == ["ann", "control", "teacher", "qcfs", "snn", "qcfs", "snn"]
    assert other.rows[2].loss == other.rows[0].loss
    alone = tune_folder(options(place, "d4", steps=1, distill=0.0), Silent())
    assert alone.extra["tuning"]["teacher"] is None
    assert len({r.rows[-1].loss for r in (control, other, alone)}) == 3


def test_distillation_is_as_stage_1_was(place):
    shutil.copytree(place / "snn", place / "better-ann")
    file = place / "better-ann" / "results.json"
    assert json.loads(file.read_text())["extra"]["control"]["chosen"] == "fine-tuned"
    assert tune_folder(options(place, "s1", steps=1), Silent()).extra["tuning"]["distill"] == 0.5
    file.write_text(file.read_text().replace('"fine-tuned"', '"ann"'))
    mine = replace(options(place, "s2", steps=1), folder=str(place / "better-ann"))
    assert tune_folder(mine, Silent()).extra["tuning"]["distill"] == 1.0


def test_a_calibrated_folder_keeps_its_control_and_can_be_tuned(place):
    settings = {"timesteps": (3,), "codings": ("rate",), "calibration_sequences": 4, "fit_steps": 1, "length": 16}
    data = str(place / "text.txt")
    calibrate_again(CalibrateOptions(str(place / "snn"), data, place / "three", **settings), Silent())
    mine = TuneOptions(str(place / "three"), data, place / "three-tuned", 3, "rate", 2, length=16, eval_sequences=2)
    results = tune_folder(mine, Silent())
    assert [row.name for row in results.rows] == ["ann", "control", "qcfs", "snn", "qcfs", "snn"]
    assert results.rows[-1].coding == "rate"


def test_the_neurons_of_that_coding_and_time_are_found_where_several_share_a_channel(place):
    config = fas.SpikingConfig(coding="rate", timesteps=4, levels=4)
    target = tune._target(options(place, "any"), config, ["rate_mean_4", "sigma_delta_x2_2_2_1_1"])
    assert target.neuron_key == "sigma_delta_x2_2_2_1_1"
    layerwise = config.replaced(schedule="layerwise")
    assert tune._target(options(place, "any", coding=None, timesteps=None), layerwise, ["rate_mean_4"]).folds_time


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"timesteps": 3}, ConfigError, "no calibrated neurons for sigma_delta at T=3.*fas calibrate .* --timesteps 3"),
        ({"coding": "morse"}, ConfigError, "coding"),
        ({"steps": 0}, ConfigError, "steps=0"),
        ({"lr": 0.0}, ConfigError, "lr=0"),
        ({"lr": float("nan")}, ConfigError, "lr=nan"),
        ({"distill": 1.5}, ConfigError, "distill=1.5"),
        ({"batch_size": 0}, ConfigError, "batch_size=0"),
        ({"length": 5000}, ConfigError, "context"),
        ({"teacher": "./missing"}, FasError, "teacher is not at hand.*--teacher"),
        ({"teacher": "builtin"}, ConfigError, "tokens"),
        ({"data": "missing.txt"}, DataError, "does not exist"),
        ({"folder": "ann"}, CheckpointError, "not a converted model"),
        ({"folder": "tuned"}, ConfigError, "tuned already, for 25 steps"),
        ({"out": "snn"}, ConfigError, "exists already"),
    ],
)
def test_bad_input_costs_nothing(place, tuned, change, error, message):
    change = {key: place / value if key in ("out", "folder") else value for key, value in change.items()}
    change |= {"folder": str(change["folder"])} if "folder" in change else {}
    progress = Notes()
    with pytest.raises(error, match=message) as caught:
        tune_folder(replace(options(place, "bad"), **change), progress)
    assert "\n" not in str(caught.value)
    assert progress.begun == []
    assert not (place / "bad").exists()


def test_a_folder_without_control_and_results_needs_a_teacher(place):
    shutil.copytree(place / "snn", place / "bare", ignore=shutil.ignore_patterns("control", "results.json"))
    mine = replace(options(place, "bare-tuned", steps=1), folder=str(place / "bare"), length=16, eval_sequences=2)
    with pytest.raises(ConfigError, match="give --teacher"):
        tune_folder(mine, Silent())
    tune_folder(replace(mine, distill=0.0), Silent())


def test_a_full_disk_leaves_no_half_folder(place, monkeypatch):
    def full(self, folder, *args, **kwargs):
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(CheckpointError, match="No space left"):
        tune_folder(options(place, "disk", steps=1), Silent())
    assert not (place / "disk").exists()
    assert not (place / "disk.new").exists()


def test_command(place, capsys):
    arguments = ["tune", str(place / "snn"), "--data", str(place / "text.txt"), "--timesteps", "4", "--coding", "sigma-delta",
                 "--steps", "2", "--quiet"]  # fmt: skip
    assert main([*arguments, "--out", str(place / "cli")]) == 0
    shown = capsys.readouterr().out
    assert "SNN (weights tuned in time)" in shown
    assert "written to" in shown
    assert main([*arguments, "--out", str(place / "cli-json"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row.get("tuned") for row in rows] == [None, None, None, None, True, True]
    assert rows[-1]["timesteps"] == 4
    assert main([*arguments, "--out", str(place / "cli")]) == 2
    assert "exists already" in capsys.readouterr().err
