"""Stage 2 a block at a time: the same neurons as in memory, for less memory than the weights have."""

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
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

import fas
from fas.calibration import CalibrationOptions, calibrate, calibrate_folder
from fas.calibration.kept import file_name
from fas.cli import main
from fas.conversion.shelf import Shelf
from fas.errors import CheckpointError, ConfigError, FasError
from fas.models import find_segments
from fas.progress import Silent
from fas.runtime.control import clock_of
from fas.runtime.replay import blocks_of, record

BATCHES = [{"input_ids": tiny.tokens(2, 9, seed)} for seed in (11, 12)]
OPTIONS = CalibrationOptions(align_steps=3, global_steps=0)


def saved(model: PreTrainedModel, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    return folder


def reloaded(folder: Path, auto: Any = AutoModelForCausalLM, **time: Any) -> PreTrainedModel:
    model = auto.from_pretrained(folder).eval()
    model.set_timesteps(**time)
    return model


@pytest.mark.parametrize(
    ("family", "coverage", "coding", "how"),
    [
        ("gpt2", "full", "sigma_delta", {}),
        ("llama", "linear", "sigma_delta", {"max_shard_size": "20KB"}),
        ("opt", "ffn", "rate", {}),
        ("bert_mlm", "attention", "sigma_delta", {}),
    ],
)
def test_a_block_at_a_time_ends_as_in_memory(
    tmp_path: Path, family: str, coverage: str, coding: str, how: dict[str, Any]
) -> None:
    auto = AutoModelForMaskedLM if family == "bert_mlm" else AutoModelForCausalLM
    whole = tiny.snn(family, coverage)
    for name, value in whole.named_buffers():
        if name.endswith(".readout"):  # of the checkpoint, not as it is built
            value.mul_(1.01)
    folder = saved(whole, tmp_path / "in", **how)
    when = {"timesteps": 3, "coding": coding}
    reports = calibrate_folder(folder, tmp_path / "out", BATCHES, OPTIONS, auto_class=auto, **when)
    one, other = reloaded(folder, auto, **when), reloaded(tmp_path / "out", auto, **when)
    assert reports == calibrate(one, BATCHES, OPTIONS)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert one.config.quantization_config.neurons == other.config.quantization_config.neurons
    assert not list(tmp_path.glob("*.work"))


def test_another_time_is_added_to_those_before(tmp_path: Path) -> None:
    folder = saved(tiny.snn("gpt2", "linear"), tmp_path / "0")
    for index, steps in enumerate((2, 3)):
        calibrate_folder(folder, tmp_path / str(index + 1), BATCHES, OPTIONS, timesteps=steps, coding="sigma_delta")
        folder = tmp_path / str(index + 1)
    model = reloaded(folder, timesteps=2, coding="sigma_delta")
    assert len(model.config.quantization_config.neurons) == 2
    with pytest.raises(ConfigError, match="already; choose another"):
        calibrate_folder(folder, tmp_path / "3", BATCHES, OPTIONS, timesteps=2, coding="sigma_delta")


def test_weights_and_buffers_come_from_the_files_and_only_weights_go_again(tmp_path: Path) -> None:
    stored = nn.BatchNorm1d(3)
    stored.weight.data.fill_(2.0)
    stored.running_mean.fill_(5.0)
    save_file(stored.state_dict(), tmp_path / "model.safetensors")
    with init_empty_weights(include_buffers=False):
        module = nn.BatchNorm1d(3)
    with Shelf(tmp_path).loaded(module, [module], torch.device("cpu")):
        assert all(torch.equal(value, stored.state_dict()[name]) for name, value in module.state_dict().items())
    assert module.weight.is_meta
    assert torch.equal(module.running_mean, stored.running_mean)


def test_a_long_schedule_is_a_short_name() -> None:
    one, other = ("sigma_delta" + "_1" * count for count in (200, 201))
    assert len(file_name(one)) < 120
    assert file_name(one) != file_name(other)
    assert file_name("rate_8") == "rate_8"


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    when = {"timesteps": 2, "coding": "sigma_delta"}
    folder = saved(tiny.snn("gpt2", "linear"), tmp_path / "snn")
    with pytest.raises(ConfigError, match="exists already"):
        calibrate_folder(folder, folder, BATCHES, OPTIONS, **when)
    with pytest.raises(ConfigError, match="inside"):
        calibrate_folder(folder, folder / "deeper" / "out", BATCHES, OPTIONS, **when)
    with pytest.raises(CheckpointError, match="no local folder"):
        calibrate_folder(tmp_path / "nowhere", tmp_path / "out", BATCHES, OPTIONS, **when)
    with pytest.raises(CheckpointError, match="not a converted model"):
        calibrate_folder(saved(tiny.ann("gpt2"), tmp_path / "ann"), tmp_path / "out", BATCHES, OPTIONS, **when)
    (folder / "model.safetensors").rename(folder / "other")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        calibrate_folder(folder, tmp_path / "out", BATCHES, OPTIONS, **when)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        calibrate_folder(folder, tmp_path / "out", BATCHES, OPTIONS, **when)
    with pytest.raises(FasError, match="synchronous"):
        calibrate_folder(
            saved(tiny.snn("llama", "linear"), tmp_path / "llama"), tmp_path / "out", BATCHES, OPTIONS,
            timesteps=8, schedule="layerwise",
        )  # fmt: skip


LIMITED = """
import resource, shutil, sys, torch
import fas
from fas.calibration import CalibrationOptions, calibrate, calibrate_folder
from transformers import AutoModelForCausalLM
folder, out, room, small = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
batches = [{"input_ids": torch.arange(8).view(1, 8)}]
options = CalibrationOptions(align_steps=1, global_steps=0)

def calibrated(folder, out):
    if out == "memory":
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.set_timesteps(2)
        calibrate(model, batches, options)
    else:
        calibrate_folder(folder, out, batches, options, timesteps=2, coding="sigma_delta")

calibrated(small, "memory" if out == "memory" else small + "-out")  # all that is imported and set up only once
shutil.rmtree(small + "-out", ignore_errors=True)
used = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmData")) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
calibrated(folder, out)
print("calibrated")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts all private memory on Linux only")
def test_weights_beyond_a_limit_of_memory(tmp_path: Path) -> None:
    """200 MB of weights with room for 105 MB: only from disk."""
    torch.manual_seed(0)
    ann = GPT2LMHeadModel(
        GPT2Config(n_layer=16, n_embd=512, n_head=4, vocab_size=64, n_positions=16, bos_token_id=0, eos_token_id=0)
    ).eval()
    config = fas.SpikingConfig(coverage="ffn", levels=3, timesteps=2)
    model = fas.convert(fas.prepare(ann, config, [{"input_ids": torch.arange(8).view(1, 8)}]))
    folder = saved(model, tmp_path / "in")
    small = saved(tiny.snn("gpt2", "ffn"), tmp_path / "small")
    room = 100 << 20
    assert (folder / "model.safetensors").stat().st_size > 1.9 * room

    def run(out: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LIMITED, str(folder), out, str(room), str(small)]
        # what is freed must not count: gaps in the heap would
        strict = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | strict)

    assert "calibrated" in (found := run(str(tmp_path / "out"))).stdout, found.stderr
    failed = run("memory")
    assert "calibrated" not in failed.stdout
    assert "allocate memory" in failed.stderr
    assert len(reloaded(tmp_path / "out", timesteps=2).config.quantization_config.neurons) == 1


class Killed(BaseException):
    pass


class KillInTheSecondLayer(Silent):
    def __init__(self) -> None:
        self.left, self.notes = 6, list[str]()

    def advance(self, parts: int = 1, note: str = "") -> None:
        self.notes.append(note)
        self.left -= 1
        if self.left == 0:
            raise Killed


def test_interrupted_from_disk_ends_the_same(tmp_path: Path) -> None:
    folder, when = saved(tiny.snn("gpt2", "linear"), tmp_path / "in"), {"timesteps": 3, "coding": "sigma_delta"}
    with pytest.raises(Killed):
        calibrate_folder(folder, tmp_path / "out", BATCHES, OPTIONS, KillInTheSecondLayer(), **when)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out.new").mkdir()  # what a kill while writing leaves
    (tmp_path / "out.new" / "half").touch()
    later = KillInTheSecondLayer()
    later.left = 99
    reports = calibrate_folder(folder, tmp_path / "out", BATCHES, OPTIONS, later, **when)
    assert later.notes[0] == "layer 0 was calibrated before the interruption"
    assert "layer 1 error" in later.notes[1]
    assert reports == calibrate_folder(folder, tmp_path / "whole", BATCHES, OPTIONS, **when)
    one, other = (reloaded(tmp_path / name, **when) for name in ("out", "whole"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert not (tmp_path / "out" / "half").exists()


def test_a_recording_leaves_blocks_as_they_were() -> None:
    """Accelerate keeps its hooks in a ``forward`` of the block's own."""
    model = tiny.snn("gpt2", "linear")
    (segment,) = find_segments(model)
    block = blocks_of(segment)[1]
    own = block.forward = block.forward
    record(model, segment, BATCHES[0])
    assert block.forward is own
    assert "forward" not in vars(blocks_of(segment)[0])


@pytest.mark.parametrize("where", [[], ["--from-disk"]])
def test_the_command_adds_a_time(tmp_path: Path, where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, text = tmp_path / "snn", folders.save_text(tmp_path / "text.txt")
    folders.save_ann(folder)  # its tokenizer
    saved(tiny.snn("gpt2", "linear"), folder)
    command = ["calibrate", str(folder), "--data", text, "--timesteps", "3", "--out", str(tmp_path / "out")]
    command += [
        "--calibration-sequences",
        "4",
        "--align-steps",
        "1",
        "--global-steps",
        "1",
        "--length",
        "16",
        "--json",
        "-q",
    ]
    assert main([*command, *where]) == 0
    (found,) = json.loads(capsys.readouterr().out)["calibrated"].values()
    assert len(found) == 2
    assert all(layer["by_site"] <= layer["before"] + 1e-3 for layer in found)
    options = ["--max-new-tokens", "2", "--timesteps", "3", "--quiet"]
    assert main(["generate", str(tmp_path / "out"), "--prompt", "w1 w2", *options]) == 0
    capsys.readouterr()
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert clock_of(written).config == clock_of(AutoModelForCausalLM.from_pretrained(folder)).config
    assert main([*command, *where]) == 2
    assert "exists already" in capsys.readouterr().err
    command[command.index("3")], command[command.index(str(tmp_path / "out"))] = "", str(tmp_path / "none")
    assert main([*command, *where]) == 2
    assert "no timesteps" in capsys.readouterr().err
