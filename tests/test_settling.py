"""Schedules by depth on the whole network, and a calibration of which only the parts that help are kept."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import fas
from fas.calibration import CalibrationOptions, settling
from fas.calibration.driver import keep_what_helps
from fas.calibration.settling import schedules, settle
from fas.neurons import NeuronParameters
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
