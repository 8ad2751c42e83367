"""Stage 2 goes on from its last finished layer and ends with the same bits."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import fas
from fas.calibration import CalibrationOptions, calibrate
from fas.calibration import block as stage
from fas.errors import CheckpointError
from fas.progress import Silent

BATCHES = [{"input_ids": tiny.tokens(2, 9, seed)} for seed in (11, 12)]
OPTIONS = CalibrationOptions(align_steps=3, global_steps=2)
LAYERS = 4


def model_of(**settings: Any) -> PreTrainedModel:
    """Four layers to be killed between."""
    model = tiny.ann("gpt2", n_layer=LAYERS)
    config = fas.SpikingConfig(coverage="linear", levels=8, timesteps=3, **settings)
    return fas.convert(fas.prepare(model, config, [{"input_ids": tiny.tokens()}]))


def equal(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed() -> tuple[PreTrainedModel, list[Any]]:
    model = model_of()
    return model, calibrate(model, BATCHES, OPTIONS)


class Killed(BaseException):
    pass


class KillAt(Silent):
    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self, steps: int = 1, message: str = "") -> None:
        self.left -= 1
        if self.left <= 0:
            raise Killed


@pytest.mark.parametrize("step", [1, 4, 5, 9, 13, 16, 17, 18])
def test_it_goes_on_where_it_was_interrupted(undisturbed: Any, tmp_path: Path, step: int) -> None:
    """At every kind of place: within a search, a descent, the global pass; each start is a fresh model."""
    whole, reports = undisturbed
    with pytest.raises(Killed):
        calibrate(model_of(), BATCHES, OPTIONS, KillAt(step), tmp_path / "layers")
    model = model_of()
    assert calibrate(model, BATCHES, OPTIONS, resume=tmp_path / "layers") == reports
    assert equal(model, whole)


def test_finished_layers_are_not_calibrated_again(
    undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(model_of(), BATCHES, OPTIONS, resume=tmp_path)
    assert len(list(tmp_path.iterdir())) == LAYERS
    (tmp_path / "transformer.3.safetensors").unlink()
    searched: list[int] = []
    search = stage.calibrate_sites

    def counted(sites: Any, *arguments: Any) -> Any:
        searched.append(len(sites))
        return search(sites, *arguments)

    monkeypatch.setattr(stage, "calibrate_sites", counted)
    model = model_of()
    calibrate(model, BATCHES, OPTIONS, resume=tmp_path)
    assert searched == [4]
    assert equal(model, undisturbed[0])


def test_layers_of_another_calibration_are_refused(tmp_path: Path) -> None:
    calibrate(model_of(), BATCHES, OPTIONS, resume=tmp_path)
    other = model_of()
    with torch.no_grad():
        other.transformer.h[2].mlp.c_fc.weight[0, 0] += 1
    changed = [
        (other, BATCHES, OPTIONS),
        (model_of(), BATCHES[:1], OPTIONS),
        (model_of(), BATCHES, CalibrationOptions(align_steps=2, global_steps=2)),
        (model_of(scales="tensor"), BATCHES, OPTIONS),
    ]
    for model, batches, options in changed:
        with pytest.raises(CheckpointError, match="another model, data, options or versions"):
            calibrate(model, batches, options, resume=tmp_path)
        assert not model.config.quantization_config.neurons
    (tmp_path / "transformer.1.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"transformer\.1\.safetensors cannot be read"):
        calibrate(model_of(), BATCHES, OPTIONS, resume=tmp_path)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        calibrate(model_of(), BATCHES, OPTIONS, resume=tmp_path / "file")


def child(folder: Path) -> None:
    """What the killed process runs."""
    model = model_of()
    print("ready", flush=True)
    calibrate(model, BATCHES, OPTIONS, resume=folder / "layers")
    values = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(values, folder / "whole.new", metadata={"format": "pt"})
    (folder / "whole.new").rename(folder / "whole.safetensors")


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL at random moments of what a run takes, each time anew, and from nothing where it came through before."""
    chance, command, kills = random.Random(0), [sys.executable, __file__, str(tmp_path)], 0
    whole, seconds = run_through(command, tmp_path, None)
    while kills < 10:
        found, _ = run_through(command, tmp_path, chance.uniform(0.05, 0.6) * seconds)
        if found is None:
            kills += 1
        else:
            assert_equal(found, whole)
    found, _ = run_through(command, tmp_path, None)
    assert_equal(found, whole)


def run_through(
    command: list[str], folder: Path, patience: float | None
) -> tuple[dict[str, torch.Tensor] | None, float]:
    """What came out, which is put away with all that was kept, and how long it took; None if patience (seconds) ended."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return None, 0
    assert process.returncode == 0
    seconds, found = time.monotonic() - start, load_file(folder / "whole.safetensors")
    (folder / "whole.safetensors").unlink()
    shutil.rmtree(folder / "layers")
    return found, seconds


def assert_equal(found: dict[str, torch.Tensor] | None, wanted: dict[str, torch.Tensor] | None) -> None:
    assert found is not None
    assert wanted is not None
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


if __name__ == "__main__":
    child(Path(sys.argv[1]))
