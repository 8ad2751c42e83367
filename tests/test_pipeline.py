"""``fas convert`` and ``fas eval`` as functions: whole, resumable, and refusing what would mislead."""

import errno
import json

import folders
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from fas.cli import main
from fas.errors import CheckpointError, ConfigError, DataError, FasError
from fas.pipeline.convert import run_conversion
from fas.pipeline.evaluate import evaluate_folder
from fas.pipeline.load import load_ann, load_spiking, pick_device
from fas.pipeline.options import ConvertOptions
from fas.progress import Silent

SMALL = {
    "levels": 4, "codings": ("rate", "sigma_delta"), "timesteps": (2, 4), "neurons_per_channel": 2, "stage1_steps": 3,
    "batch_size": 2, "length": 16, "calibration_sequences": 4, "align_steps": 1, "global_steps": 1, "eval_sequences": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    return {"model": folders.save_ann(root / "ann"), "data": folders.save_text(root / "text.txt"), "root": root}


@pytest.fixture(scope="module")
def whole(place):
    options = ConvertOptions(model=place["model"], data=place["data"], out=place["root"] / "whole", **SMALL)
    return options, run_conversion(options)


def test_rows_and_folder(whole):
    options, results = whole
    kinds = [(row.name, row.coding, row.timesteps, row.stage2) for row in results.rows]
    assert kinds == [
        ("ann", None, None, None), ("control", None, None, None), ("qcfs", None, None, None), ("snn", None, 4, False),
        ("snn", "rate", 2, True), ("snn", "rate", 4, True),
        ("snn", "sigma_delta", 2, True), ("snn", "sigma_delta", 4, True),
    ]  # fmt: skip
    qcfs, layerwise = results.rows[2], results.rows[3]
    assert layerwise.schedule == "layerwise"
    assert layerwise.perplexity == qcfs.perplexity
    assert all(row.spikes_per_neuron > 0 for row in results.rows[3:])
    assert [row.neurons_per_channel for row in results.rows[4:]] == [None, None, 2, 2]
    assert len(results.rows[-1].steps) == 2 * 4
    written = json.loads((options.out / "results.json").read_text())
    assert [row["name"] for row in written["rows"]] == [kind[0] for kind in kinds]
    assert written["seed"] == 0
    assert written["extra"]["data"]["read"] == [{"name": options.data, "count": 60}]
    assert not options.out.with_name("whole.work").exists()
    assert len(list(options.out.glob("*.safetensors"))) == 1
    model, _ = load_spiking(str(options.out))
    best = min((row for row in results.rows if row.stage2), key=lambda row: (row.value, row.timesteps))
    saved = model.config.quantization_config.spiking
    assert (saved["coding"], saved["timesteps"]) == (best.coding, best.timesteps)
    assert results.extra["default_time"] == {"coding": best.coding, "timesteps": best.timesteps}
    load_ann(str(options.out / "control"))


def test_eval_gives_the_figures_of_the_conversion(whole, place):
    options, results = whole
    measured = evaluate_folder(
        options.out,
        place["data"],
        timesteps=(2, 4),
        codings=options.codings,
        layerwise=True,
        eval_sequences=4,
        length=16,
    )
    assert [row.name for row in measured.rows] == [row.name for row in results.rows]
    for now, then in zip(measured.rows, results.rows, strict=True):
        assert now.perplexity == pytest.approx(then.perplexity, rel=1e-6)
        assert now.spikes_per_neuron == then.spikes_per_neuron


def test_eval_says_where_the_temporal_error_is(whole, place, capsys, tmp_path):
    options, _ = whole
    arguments = ["eval", str(options.out), "--data", place["data"], "--timesteps", "2", "--diagnose", "--quiet"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Costs most: transformer." in shown
    assert main([*arguments, "--json", "--plots", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)["extra"]["diagnosis"]
    assert found
    assert {path.name for path in tmp_path.iterdir()} == {f"settling-{key}.svg" for key in found}
    assert main(["eval", str(options.out), "--plots", str(tmp_path), "--quiet"]) == 2
    for entry in found.values():
        assert f"KL to the QCFS model {entry['kl']:.4f}" in shown
        assert [layer["name"] for layer in entry["layers"]] == ["transformer.0", "transformer.1"]


class Killed(BaseException):
    pass


class KillAt(Silent):
    def __init__(self, title):
        self.title = title

    def start(self, title, total=None):
        if title.startswith(self.title):
            raise Killed


@pytest.mark.parametrize("title", ["control", "Stage 1", "Stage 2, sigma-delta", "evaluating SNN, sigma_delta T=2"])
def test_killed_and_started_again_ends_with_the_same_result(whole, place, title):
    options, results = whole
    out = place["root"] / f"killed at {title}"
    again = ConvertOptions(model=place["model"], data=place["data"], out=out, **SMALL)
    with pytest.raises(Killed):
        run_conversion(again, KillAt(title))
    assert not out.exists()
    resumed = run_conversion(again)
    assert [row.loss for row in resumed.rows] == [row.loss for row in results.rows]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, options.out))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Messages(Silent):
    """What layers said; killed at the second."""

    def __init__(self, kill):
        self.kill, self.said = kill, []

    def advance(self, steps=1, message=""):
        self.said.append(message)
        if self.kill and message.startswith("layer 1 error"):
            raise Killed


def test_killed_within_stage_2_it_keeps_the_layers_that_were_finished(whole, place):
    _, results = whole
    again = ConvertOptions(model=place["model"], data=place["data"], out=place["root"] / "layers", **SMALL)
    with pytest.raises(Killed):
        run_conversion(again, Messages(kill=True))
    (kept,) = (place["root"] / "layers.work").glob("*-layers/*.safetensors")
    assert kept.stem == "transformer.0"
    progress = Messages(kill=False)
    resumed = run_conversion(again, progress)
    assert progress.said.count("layer 0 was calibrated before the interruption") == 1
    assert [row.loss for row in resumed.rows] == [row.loss for row in results.rows]


def test_other_arguments_are_refused_finished_or_not(whole, place):
    options, _ = whole
    with pytest.raises(CheckpointError, match="other arguments"):
        run_conversion(ConvertOptions(model=place["model"], data=place["data"], out=options.out, **SMALL | {"seed": 1}))
    begun = ConvertOptions(model=place["model"], data=place["data"], out=place["root"] / "begun", **SMALL)
    with pytest.raises(Killed):
        run_conversion(begun, KillAt("Stage 1"))
    with pytest.raises(CheckpointError, match="other arguments"):
        run_conversion(
            ConvertOptions(model=place["model"], data=place["data"], out=begun.out, **SMALL | {"stage1_steps": 4})
        )


def test_a_stage_stored_just_before_a_kill_is_stored_again(place, whole, monkeypatch):
    """Killed after the control was written and before the decision was; and after the result was, before the rename."""
    from fas.pipeline.workspace import Workspace

    options = ConvertOptions(model=place["model"], data=place["data"], out=place["root"] / "windows", **SMALL)
    keep, finish = Workspace.store_json, Workspace.finish

    def killed(self, stage, value):
        raise Killed

    def killed_between(self, write):
        monkeypatch.setattr(
            "pathlib.Path.rename", lambda a, b: (_ for _ in ()).throw(Killed()) if b == self.out else move(a, b)
        )
        finish(self, write)

    import pathlib

    move = pathlib.Path.rename
    for method, broken in (("store_json", killed), ("finish", killed_between)):
        monkeypatch.setattr(Workspace, method, broken)
        with pytest.raises(Killed):
            run_conversion(options)
        assert not options.out.exists()
        monkeypatch.setattr(Workspace, "store_json", keep)
        monkeypatch.setattr(Workspace, "finish", finish)
        monkeypatch.setattr("pathlib.Path.rename", move)
    assert [row.loss for row in run_conversion(options).rows] == [row.loss for row in whole[1].rows]


def test_eval_without_options_measures_all_that_was_calibrated_on_the_same_text(whole, place):
    options, results = whole
    measured = evaluate_folder(options.out, place["data"])
    assert {(r.coding, r.timesteps) for r in measured.rows if r.name == "snn"} == {
        (c, t) for c in options.codings for t in options.timesteps
    }
    losses = {(r.name, r.coding, r.timesteps, r.schedule): r.loss for r in results.rows}
    for row in measured.rows:
        assert row.loss == pytest.approx(losses[row.name, row.coding, row.timesteps, row.schedule], rel=1e-6)
        assert row.stage2 in (None, True)


def test_demo_does_not_remove_what_it_did_not_make(tmp_path):
    from fas.pipeline.demo import run_demo

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("mine")
    with pytest.raises(CheckpointError, match="no demonstration wrote there"):
        run_demo(tmp_path)
    assert (tmp_path / "model" / "precious").exists()


def test_finished_run_is_shown_not_repeated(whole):
    options, results = whole
    assert run_conversion(options, KillAt("")).to_dict()["rows"] == results.to_dict()["rows"]


def test_training_free(place):
    settings = SMALL | {"stage1": "none", "stage2": False, "timesteps": (4,)}
    out = place["root"] / "free"
    results = run_conversion(ConvertOptions(model=place["model"], data=place["data"], out=out, **settings))
    assert results.rows[0].perplexity == results.rows[1].perplexity
    assert [row.stage2 for row in results.rows[3:]] == [False, False, False]


def test_full_disk_is_one_sentence_and_leaves_no_half_folder(place, monkeypatch):
    def full(self, folder, *args, **kwargs):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    out = place["root"] / "full"
    options = ConvertOptions(model=place["model"], data=place["data"], out=out, **SMALL | {"stage1": "none"})
    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "save_pretrained", full)
        with pytest.raises(CheckpointError, match="No space left") as caught:
            run_conversion(options)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not list(place["root"].glob("full.work/*.new"))
    run_conversion(options)
    assert out.exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"levels": 0}, ConfigError, "levels"),
        ({"timesteps": (0,)}, ConfigError, "timesteps"),
        ({"coverage": "everything"}, ConfigError, "coverage"),
        ({"steps": (3, 1, 1, 1)}, ConfigError, "powers of two"),
        ({"steps": (2, 1, 1)}, ConfigError, "fit no target.*timesteps 1.5"),
        ({"codings": ("rate",)}, ConfigError, "neurons_per_channel=2 needs coding sigma_delta"),
        ({"distill": 2.0}, ConfigError, "distill"),
        ({"data": "missing.txt"}, DataError, "does not exist"),
        ({"length": 5000}, ConfigError, "beyond the model.s context"),
        ({"eval_sequences": 0}, ConfigError, "at least 1"),
        ({"model": "./missing"}, FasError, "no folder"),
    ],
)
def test_bad_input_costs_nothing(place, change, error, message):
    out = place["root"] / "bad"
    with pytest.raises(error, match=message) as caught:
        run_conversion(ConvertOptions(**{"model": place["model"], "data": place["data"], "out": out} | SMALL | change))
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not out.with_name("bad.work").exists()


def test_converted_and_plain_folders_are_not_confused(whole, place):
    with pytest.raises(CheckpointError, match="not a converted model"):
        load_spiking(place["model"])
    with pytest.raises(FasError, match="converted already"):
        load_ann(str(whole[0].out))


def test_cuda_without_an_index_is_the_present_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older torch refuses a device without index where it has to be set."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [pick_device(name) for name in ("cuda", "auto", "cuda:0")] == [
        torch.device("cuda", 1), torch.device("cuda", 1), torch.device("cuda", 0),
    ]  # fmt: skip
    assert all(device.index is not None for device in chosen)
