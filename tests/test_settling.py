"""Schedules by depth on the whole network, and a calibration of which only the parts that help are kept."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import fas
from fas.calibration import CalibrationOptions, calibrate_folder, options, settling
from fas.calibration.driver import keep_what_helps
from fas.calibration.settling import schedules, settle
from fas.neurons import NeuronParameters
from fas.pipeline.calibrate import CalibrateOptions, calibrate_again
from fas.progress import Silent
from fas.runtime.control import clock_of, sites_of
from fas.steps import default_steps

BATCH = {"input_ids": torch.randint(3, tiny.VOCAB, (4, 16), generator=torch.Generator().manual_seed(0))}


def snn(steps: tuple[int, ...] | None = None, **time: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # incomplete schedules are what is settled
        config = fas.SpikingConfig(levels=8, timesteps=4, steps=steps, **time)
        return fas.convert(fas.prepare(tiny.ann("llama"), config, [BATCH])).eval()


def parameters(model: Any) -> list[NeuronParameters]:
    key = clock_of(model).config.neuron_key
    return [site.add_parameters(key) for site in sites_of(model).values() if site.calibrates]


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 4))
def test_candidates_are_schedules(levels: int, timesteps: int, neurons: int) -> None:
    found = schedules(levels, timesteps, neurons)
    assert found[0] == default_steps(levels, timesteps * neurons)
    assert len(set(found)) == len(found)
    for steps in found:
        assert len(steps) == timesteps * neurons
        assert all(k >= 1 and k & (k - 1) == 0 for k in steps)


def test_a_bad_schedule_is_replaced() -> None:
    model = snn((1, 1, 1, 1))
    judge = settling._Judge(model, [BATCH])
    chosen = parameters(model)
    before = judge(settling.MANY_TOKENS)
    settle(model, [BATCH], Silent(), chosen)
    assert judge(settling.MANY_TOKENS) < 0.7 * before
    assert all(float(entry.steps[0]) > 1 for entry in chosen)


def test_nothing_changes_without_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "GAIN", 1.0)
    model = snn((2, 2, 1, 1))
    chosen = parameters(model)
    settle(model, [BATCH], Silent(), chosen)
    assert all(entry.steps.tolist() == [2, 2, 1, 1] for entry in chosen)
    rate = snn(coding="rate")
    chosen = parameters(rate)
    settle(rate, [BATCH], Silent(), chosen)
    assert all(entry.steps.numel() == 0 for entry in chosen)


def test_deep_networks_settle_as_part_of_stage_2() -> None:
    shallow, deep = CalibrationOptions.for_depth(12), CalibrationOptions.for_depth(13)
    assert (shallow.settle, shallow.fit_steps, shallow.search_rows) == (False, 32, 1024)
    assert (deep.settle, deep.fit_steps, deep.search_rows) == (True, 0, 256)
    assert CalibrationOptions.for_depth(40, fit_steps=32).fit_steps == 32  # today's thorough search
    model = snn((1, 1, 1, 1))
    fas.calibrate(model, [BATCH], CalibrationOptions(settle=True, coarse=False, per_channel=False, fit_steps=0))
    key = clock_of(model).config.neuron_key
    assert all(float(site.neurons[key].steps[0]) > 1 for site in sites_of(model).values())


def test_layers_stay_where_schedules_are_enough() -> None:
    """A network that its schedules bring close to its QCFS model is not searched layer by layer, unless that is asked for."""
    deep = CalibrationOptions.for_depth(13)
    assert deep.settled_within == 0.03
    assert CalibrationOptions.for_depth(12).settled_within == 0.0
    for more in ({"fit_steps": 32}, {"align_steps": 1}, {"spike_price": 0.1}):
        assert CalibrationOptions.for_depth(13, **more).settled_within == 0.0
    told = {}
    for within in (0.0, 1e9):
        model, heard = snn((1, 1, 1, 1)), Heard()
        found = fas.calibrate(model, [BATCH], replace(deep, settled_within=within), heard)
        told[within] = len(found), heard.ends[-1]
        key = clock_of(model).config.neuron_key
        if within:
            assert all(float(site.neurons[key].steps[0]) > 1 for site in sites_of(model).values())
            assert all(not site.neurons[key].v_init.diff().any() for site in sites_of(model).values())
    assert told[0.0][0] == 2
    assert "by layer" in told[0.0][1]
    assert told[1e9][0] == 0
    assert "layers stay" in told[1e9][1]


class Heard(Silent):
    def __init__(self) -> None:
        self.titles, self.notes, self.ends = list[str](), list[str](), list[str]()

    def done(self, summary: str = "") -> None:
        self.ends.append(summary)

    def start(self, title: str, total: int | None = None) -> None:
        self.titles.append(title)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted folder of two layers, with its tokenizer and a text."""
    root = tmp_path_factory.mktemp("settling")
    folders.save_ann(root / "snn")
    snn((1, 1, 1, 1)).save_pretrained(root / "snn")
    folders.save_text(root / "text.txt")
    return root


def asked(folder: Path, out: Path, **more: Any) -> CalibrateOptions:
    common = {"timesteps": (3,), "calibration_sequences": 4, "length": 16}
    return CalibrateOptions(str(folder / "snn"), str(folder / "text.txt"), out, **(common | more))


def test_the_command_has_the_options_of_the_depth() -> None:
    own = CalibrateOptions("m", "d", Path("o"))
    assert own.settings(12) == CalibrationOptions()
    assert own.settings(13) == CalibrationOptions.for_depth(13)
    given = replace(own, fit_steps=7, global_steps=2).settings(13)
    assert (given.settle, given.fit_steps, given.global_steps) == (True, 7, 2)


@pytest.mark.parametrize("deep", [False, True])
def test_the_command_settles_deep_networks(
    deep: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "DEEP", 1 if deep else 2)
    heard = Heard()
    calibrate_again(asked(folder, tmp_path / "out", fit_steps=None if deep else 0), heard)
    assert ("Schedules by depth" in heard.titles) == deep


@pytest.mark.parametrize("deep", [True, False])
def test_without_options_the_depth_decides(deep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "DEEP", 1 if deep else 2)
    heard = Heard()
    fas.calibrate(snn(), [BATCH], progress=heard)
    assert ("Schedules by depth" in heard.titles) == deep


def test_from_disk_a_deep_network_is_searched_layer_by_layer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "DEEP", 1)
    heard = Heard()
    (reports,) = calibrate_again(asked(folder, tmp_path / "out", from_disk=True), heard).values()
    assert [note for note in heard.notes if "no search of step schedules by depth" in note]
    batches = [{"input_ids": torch.randint(3, tiny.VOCAB, (2, 16))}]
    time = {"timesteps": 3, "coding": "sigma_delta"}
    unasked = calibrate_folder(folder / "snn", tmp_path / "unasked", batches, **time)
    searched = CalibrationOptions(fit_steps=0, search_rows=256)
    assert unasked == calibrate_folder(folder / "snn", tmp_path / "asked", batches, searched, **time)
    assert len(reports) == len(unasked) == 2
    monkeypatch.setattr(options, "DEEP", 2)
    assert unasked != calibrate_folder(folder / "snn", tmp_path / "shallow", batches, **time)


@given(st.lists(st.floats(-1, 1).filter(lambda x: abs(x) > 1e-3), min_size=2, max_size=5))
def test_only_parts_that_help_are_kept(gains: list[float]) -> None:
    """Each part of a calibration takes its gain off the distance; those that add to it are undone, the others stay."""
    entries = [NeuronParameters(1, (1,)) for _ in gains]
    before = [{name: value.clone() for name, value in entry.state_dict().items()} for entry in entries]
    for entry in entries:
        entry.v_init.data.fill_(0.25)

    def distance() -> float:
        return 10 - sum(gain for gain, entry in zip(gains, entries, strict=True) if float(entry.v_init) == 0.25)

    end = keep_what_helps([[(e, b)] for e, b in zip(entries, before, strict=True)], distance, distance())
    assert [float(entry.v_init) == 0.25 for entry in entries] == [gain > 0 for gain in gains]
    assert end == pytest.approx(10 - sum(gain for gain in gains if gain > 0))
