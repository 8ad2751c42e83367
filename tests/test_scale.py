"""Two processes under torchrun do what one does: Stage 1 (DDP, FSDP2, LoRA), the global pass, evaluation, the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import together
import torch
from safetensors.torch import load_file

from fas import world
from fas.calibration import CalibrationOptions, driver
from fas.cli import main
from fas.errors import CheckpointError
from fas.pipeline import convert
from fas.pipeline.load import load_spiking, pick_device
from fas.pipeline.workspace import Workspace
from fas.report.results import Results

TESTS = Path(__file__).parent
FLAGS = [
    "--levels", "4", "--coding", "rate", "--timesteps", "2", "--stage1-steps", "3", "--batch-size", "2", "--length", "16",
    "--calibration-sequences", "5", "--global-steps", "2", "--eval-sequences", "7", "--quiet", "--json",
]  # fmt: skip


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine's CPUs."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


Found = tuple[dict[str, Any], dict[str, torch.Tensor]]


def read(folder: Path, rank: int) -> Found:
    return json.loads((folder / f"{rank}.json").read_text()), load_file(folder / f"{rank}.safetensors")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where one process left what it found, and two."""
    alone, both = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("both")
    together.main(alone)
    done = torchrun(str(TESTS / "together.py"), str(both))
    assert done.returncode == 0, done.stderr[-3000:]
    return alone, both


@pytest.fixture
def runs(written: tuple[Path, Path]) -> tuple[Found, Found, Found]:
    """What one process found, and what each of two."""
    alone, both = written
    return read(alone, 0), read(both, 0), read(both, 1)


@pytest.mark.parametrize("name", list(together.STAGE1))
def test_stage1_of_two_processes_is_that_of_one(runs: tuple[Found, Found, Found], name: str) -> None:
    (alone, weights), (both, theirs), _ = runs
    assert len(alone[name]["losses"]) == 3
    assert both[name]["losses"] == pytest.approx(alone[name]["losses"], abs=1e-5)
    mine = {key: value for key, value in weights.items() if key.startswith(f"{name} ")}
    assert mine
    for key, value in mine.items():
        other = theirs[key]
        if key.endswith(
            "c_attn.bias"
        ):  # a key's bias has no effect, and Adam makes steps of the rounding of its gradient
            value, other = (torch.cat([bias[:32], bias[64:]]) for bias in (value, other))
        torch.testing.assert_close(other, value, rtol=1e-4, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_fsdp_shares_the_parameters(runs: tuple[Found, Found, Found]) -> None:
    (alone, _), (first, _), (second, _) = runs
    assert alone["fsdp"]["kinds"] == first["ddp"]["kinds"] == ["Parameter"]
    for name in ("fsdp", "lora"):
        assert first[name]["kinds"] == second[name]["kinds"] == ["DTensor"]
        held = [found[name].pop("held") for found in (first, second)]
        assert sum(held) == pytest.approx(1)
        assert max(held) < 0.52


def test_a_budget_counts_real_tokens_of_both(runs: tuple[Found, Found, Found]) -> None:
    """Padded to another length by each process, put together by length, for two epochs; and logits are measured once."""
    (alone, _), (both, _), _ = runs
    assert max(alone["classifier"]["losses"]) > 1.5, "the budget costs nothing"
    assert both["classifier"].pop("losses") == pytest.approx(alone["classifier"].pop("losses"), abs=1e-5)
    assert both["classifier"] == alone["classifier"]


def test_the_global_pass_of_two_processes_is_that_of_one(runs: tuple[Found, Found, Found]) -> None:
    (alone, neurons), (both, theirs), _ = runs
    assert len(alone["global"]["losses"]) == 4
    assert both["global"]["losses"] == pytest.approx(alone["global"]["losses"], abs=1e-5)
    assert both["global"]["judged"] == pytest.approx(alone["global"]["judged"], abs=1e-5)
    for key in (key for key in neurons if key.startswith("global ")):
        torch.testing.assert_close(theirs[key], neurons[key], rtol=1e-4, atol=1e-6)


def test_evaluation_of_two_processes_is_that_of_one(runs: tuple[Found, Found, Found]) -> None:
    (alone, _), (both, _), _ = runs
    mean, early = alone["evaluation"]["stops"]
    assert 1 < mean < 4
    assert 0 < early < 1, "all would hide whose stops are counted"
    assert both["evaluation"] == alone["evaluation"], "the same batches, so the same bits"


def test_both_processes_know_the_same(runs: tuple[Found, Found, Found]) -> None:
    _, (first, weights), (second, theirs) = runs
    for found in (first, second):
        for name in together.STAGE1:
            found[name].pop("held", None)
    assert first == second
    assert all(torch.equal(value, theirs[key]) for key, value in weights.items())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder, and the arguments of a conversion but for ``--out``."""
    root = tmp_path_factory.mktemp("scale")
    model = folders.save_ann(root / "ann", **together.NO_DROPOUT)
    data = folders.save_text(root / "text.txt")
    return root, ["convert", "--model", model, "--data", data, *FLAGS]


@pytest.fixture(scope="module")
def whole(place: tuple[Path, list[str]]) -> Results:
    """What one process converts and measures."""
    root, arguments = place
    assert main([*arguments, "--out", str(root / "one")]) == 0
    return Results.read(root / "one" / "results.json")


def check_same(found: Path, whole: Results) -> None:
    results = Results.read(found / "results.json")
    assert [(row.name, row.coding) for row in results.rows] == [(row.name, row.coding) for row in whole.rows]
    for row, its in zip(results.rows, whole.rows, strict=True):
        assert row.loss == pytest.approx(its.loss, abs=1e-4)
        if its.spikes_per_neuron is None:
            assert row.spikes_per_neuron is None
        else:
            assert row.spikes_per_neuron == pytest.approx(its.spikes_per_neuron, rel=1e-3)
    assert results.extra["control"] == pytest.approx(whole.extra["control"], abs=1e-4)
    files = {path.relative_to(found) for path in found.rglob("*")}
    assert files == {path.relative_to(found.parent / "one") for path in (found.parent / "one").rglob("*")}
    assert not found.with_name(found.name + ".work").exists()
    load_spiking(str(found), any_task=True)


def test_a_run_of_two_processes_that_failed_is_finished_by_one(place: Any, whole: Results) -> None:
    """One fails alone while the other waits: one sentence, both end, and what is finished stays."""
    root, arguments = place
    arguments = [*arguments, "--out", str(root / "failed")]
    done = torchrun(str(TESTS / "together.py"), "fail", *[word for word in arguments if word != "--quiet"])
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("fas: error:")]
    assert said == ["fas: error: the second process has no data; give it some"]
    assert done.stdout == ""
    assert done.stderr.count("control: fine-tuning the ANN") == 1, "the first alone says what it does"
    assert "[rank0]: Traceback" not in done.stderr, "what the first one lost is the second"
    assert {path.name for path in (root / "failed.work").iterdir()} == {
        "run.json",
        "control",
        "control-decision",
        "outliers",
        "qcfs",
    }
    assert main(arguments) == 0
    check_same(root / "failed", whole)


def test_a_run_of_one_process_is_finished_by_two(
    place: Any, whole: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With FSDP, which is no other conversion; the first alone prints."""
    root, arguments = place
    arguments = [*arguments, "--out", str(root / "resumed")]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "train_qcfs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert.run_conversion(_options(arguments))
    done = torchrun("-m", "fas.cli", *arguments, "--fsdp")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "seconds_of" in json.loads(done.stdout)["extra"]
    assert "[transformers]" not in done.stderr
    check_same(root / "resumed", whole)
    command = Results.read(root / "resumed" / "results.json").command
    assert command.startswith("torchrun --nproc-per-node 2 -m fas.cli convert --model ")


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(work: Any) -> Any:
        return None

    monkeypatch.setattr(world, "once", second)
    workspace = Workspace(tmp_path / "out", "same")
    with pytest.raises(CheckpointError, match="on a disk that all machines share"):
        workspace.open()
    workspace.store("stage", lambda folder: pytest.fail("the second process writes"))
    workspace.finish(lambda folder: pytest.fail("the second process writes"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("other", "part"), [(5, 0.6), (3, 0.5)])
def test_what_cannot_be_cut_is_computed_by_all(monkeypatch: pytest.MonkeyPatch, other: int, part: float) -> None:
    """The first of two processes takes three of five sequences; packed images (their tensor is longer) count half."""
    monkeypatch.setattr(world, "size", lambda: 2)
    monkeypatch.setattr(world, "rank", lambda: 0)
    monkeypatch.setattr(driver._Target, "_loss", lambda self, batch: torch.tensor(1.0))
    batch = {"input_ids": tiny.tokens(5, 9), "pixel_values": torch.zeros(other, 2)}
    target = driver._Target(tiny.snn("gpt2"), [batch], CalibrationOptions())
    assert float(target.part_of(0)) == pytest.approx(part)


def _options(arguments: list[str]) -> Any:
    from fas.cli.convert import ConvertOptions

    named = dict(zip(arguments[1::2], arguments[2::2], strict=False))
    values = {name.removeprefix("--").replace("-", "_"): value for name, value in named.items()}
    numbers = (
        "levels",
        "stage1_steps",
        "batch_size",
        "length",
        "calibration_sequences",
        "global_steps",
        "eval_sequences",
    )
    return ConvertOptions(
        values["model"], values["data"], Path(values["out"]), codings=("rate",), timesteps=(2,),
        **{name: int(values[name]) for name in numbers},
    )  # fmt: skip


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torchrun had started two processes, which are not joined."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(world, "join", lambda device: None)
    monkeypatch.setattr(world, "size", lambda: 2)
    monkeypatch.setattr(world, "leave", lambda: None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "3"], "a batch of 3 cannot be divided equally among 2 processes; choose --batch-size 4"),
        (["--pareto"], "--pareto runs in one process"),
    ],
)
def test_what_two_processes_cannot_do_is_refused_before_anything_is_computed(
    place: Any, launched: None, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    root, arguments = place
    assert main([*arguments, "--out", str(root / "refused"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not list(root.glob("refused*"))


@pytest.mark.parametrize("arguments", [["inspect", "builtin"], ["eval", "somewhere", "--tasks", "piqa"]])
def test_commands_of_one_process_refuse_torchrun(
    launched: None, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    assert "start it without torchrun" in capsys.readouterr().err


def test_fsdp_needs_torchrun(place: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root, arguments = place
    assert main([*arguments, "--out", str(root / "refused"), "--fsdp"]) == 2
    assert "start with torchrun" in capsys.readouterr().err


def test_each_process_has_a_gpu_of_its_own(launched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == chosen[0] == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="one GPU for all processes"):
        pick_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="--nproc-per-node 2, or choose --device cpu"):
        pick_device("cuda")


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_shares_are_all_and_differ_by_one(monkeypatch: pytest.MonkeyPatch, processes: int, count: int) -> None:
    monkeypatch.setattr(world, "size", lambda: processes)
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(world, "rank", lambda rank=rank: rank)
        parts.append(list(range(count))[world.share(count)])
    assert [thing for part in parts for thing in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
