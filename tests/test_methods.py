"""Published methods: each against its defining equations, written again as plain loops; and all of them on a small model."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fas import prepare
from fas.accounting import ledger
from fas.config import SpikingConfig
from fas.errors import ConfigError
from fas.methods import Method, built, depth_of, method_named, methods, register
from fas.methods.cos import fired, offset_spikes
from fas.methods.integers import adaptive_threshold, multi_level
from fas.methods.las import few_spikes, outlier_aware
from fas.methods.parallel import parallel_spikes
from fas.methods.phase import BASES, _with_worth, fitted, phase_spikes, thresholds_of
from fas.methods.snn_calibration import as_ann, channel_means
from fas.methods.sta import bursts
from fas.methods.start import as_snn
from fas.neurons import qcfs
from fas.progress import Silent
from fas.runtime.control import clock_of, sites_of
from fas.runtime.spikes import counting

FLOATS = st.floats(-3, 3, allow_nan=False, width=32)
CHARGES = st.lists(FLOATS, min_size=1, max_size=12)
QUICK = settings(max_examples=60, deadline=None)


@QUICK
@given(st.floats(-2, 2, width=32), st.integers(1, 12), st.booleans())
def test_parallel_neuron_is_qcfs_and_its_spikes_are_sorted(x: float, timesteps: int, signed: bool) -> None:
    """N = #{t : t·θ ≤ T·x + θ/2}, mirrored for what is negative on a signed site."""
    value, spikes, _ = parallel_spikes(torch.tensor([x]), torch.tensor([1.0]), timesteps, signed)
    assert float(value) == pytest.approx(
        float(qcfs(torch.tensor([x]), torch.tensor([1.0]), timesteps, signed)), abs=1e-6
    )
    assert spikes.sum() / timesteps == pytest.approx(float(value), abs=1e-6)
    assert (spikes.abs().diff(dim=0) <= 0).all()
    if x >= 0:
        charge = torch.tensor(x) / (torch.tensor(1.0) / timesteps)
        assert int(spikes.sum()) == sum(float(charge) + 0.5 >= t for t in range(1, timesteps + 1))


@QUICK
@given(st.floats(0, 20, width=32), st.integers(1, 16))
def test_few_spikes_are_the_bits_of_a_value(x: float, timesteps: int) -> None:
    left, bits = np.float32(x), []
    for t in range(1, timesteps + 1):
        worth = np.float32(10 * 2.0**-t)
        bits.append(float(left > worth))
        left = np.float32(left - bits[-1] * worth)
    value, spikes = few_spikes(torch.tensor([x]), 10.0, timesteps)
    assert spikes[:, 0].tolist() == bits
    assert float(value) == pytest.approx(sum(b * 10 * 2.0**-t for t, b in enumerate(bits, 1)), abs=1e-5)
    if x <= 10:
        assert 0 <= x - float(value) <= 10 * 2.0**-timesteps + 1e-5


def test_outliers_have_a_range_of_their_own() -> None:
    value, spikes, _ = outlier_aware(torch.tensor([-9.99, -10.0, 400.0, 9999.0]), 16)
    assert value.tolist() == pytest.approx([-9.99, -10.0, 400.0, 500.0], abs=500 * 2.0**-16)
    assert spikes[:, 0].sum() < 0 < spikes[:, 2].sum()


def test_phase_coding_by_hand_and_its_weights() -> None:
    """Base 2 and T = 3: .8 + 1/16 = .8625 → .5 .3625 → .25 .1125 → 0 (threshold .125)."""
    assert phase_spikes(torch.tensor([0.8, -0.8, 0.0]), (0.5, 0.25, 0.125)).tolist() == [
        [1, -1, 0],
        [1, -1, 0],
        [0, 0, 0],
    ]
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)) ** 3
    values = values / values.abs().max()  # many small ones, few large ones
    found = fitted(values, 6)
    spikes = phase_spikes(values, found.thresholds)
    error = (torch.tensordot(found.worth, spikes, 1) - values).square().mean()
    halves = thresholds_of((2.0,), (0,), 6)
    assert halves == tuple(2.0 ** -(t + 1) for t in range(6))
    plain = (torch.tensordot(torch.tensor(halves), phase_spikes(values, halves), 1) - values).square().mean()
    single = min(_with_worth(values, (base,), (0,), 6)[0] for base in BASES)
    assert error < 0.95 * single < 0.95 * plain  # fitted worths say more, a second grain more than that
    for change in torch.eye(6) * 1e-3:  # no other weights are better for these spikes
        assert error <= (torch.tensordot(found.worth + change, spikes, 1) - values).square().mean() + 1e-9


@QUICK
@given(st.lists(FLOATS, min_size=2, max_size=8), st.integers(1, 8))
def test_integer_spikes(values: list[float], timesteps: int) -> None:
    x = torch.tensor(values)
    value, spikes, _ = multi_level(x, timesteps)
    step = (max(values) - min(values)) / (timesteps * 3)
    assert ((spikes >= 0) & (spikes <= 3)).all()
    assert (value - x).abs().max() <= step / 2 + 1e-5  # rounding to T·(2ⁿ − 1) steps
    value, spikes, _ = adaptive_threshold(x, timesteps)
    size = max(sum(map(abs, values)) / len(values) / 3, 1e-12)
    for number, entry in enumerate(values):
        count = max(-timesteps, min(timesteps, round(entry / size)))
        near_tie = abs(abs(entry / size) % 1 - 0.5) < 1e-4
        assert near_tie or int(spikes[:, number].sum()) == count
    assert (spikes.sum(0) * size - value).abs().max() < 1e-4


@QUICK
@given(CHARGES, st.booleans(), st.integers(1, 3))
def test_bursts_are_integrate_and_fire_in_small_steps(charges: list[float], signed: bool, burst: int) -> None:
    left, expected = 0.5 / burst, []
    for charge in charges:
        left, net = left + charge, 0
        for _ in range(burst):
            spike = 1 if left >= 1 / burst else -1 if signed and left < 0 else 0
            left, net = left - spike / burst, net + spike
        expected.append(net)
    assert bursts(torch.tensor(charges, dtype=torch.float64), signed, burst).tolist() == expected


@QUICK
@given(st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=10))
def test_offset_spikes_mend_one_spike_a_round(charges: list[float]) -> None:
    """Unsigned: after enough rounds nobody is left below zero who fired, or above θ who was silent at some step."""
    values = torch.tensor(charges, dtype=torch.float64).unsqueeze(1)
    spikes = offset_spikes(values, False, rounds=2 * len(charges))[:, 0]
    wanted = math.floor(sum(charges) + 0.5)
    first, _, left = fired(values, torch.tensor([0.5], dtype=torch.float64), False)
    if left < 0 and first.sum() == 0:
        assert spikes.sum() == 0
    elif abs(sum(charges) + 0.5 - round(sum(charges) + 0.5)) > 1e-2:
        before, after = (abs(float(s.sum()) - max(0, min(wanted, len(charges)))) for s in (first, spikes))
        assert after <= before


@pytest.fixture(scope="module")
def llama() -> tuple[Any, Any, dict[str, Any]]:
    model = tiny.ann("llama").eval()
    batch = tiny.inputs_for(model, 4)
    return model, prepare(copy.deepcopy(model), SpikingConfig(coverage="linear", levels=8, timesteps=8), [batch]), batch


@pytest.mark.parametrize("name", sorted(methods()))
@torch.no_grad()
def test_every_method_runs_and_more_time_is_better(name: str, llama: tuple[Any, Any, dict[str, Any]]) -> None:
    ann, network, batch = llama
    method, errors = method_named(name), []
    ann_logits = ann(**batch).logits
    for timesteps in (1, 16):
        model = copy.deepcopy(ann if method.start == "control" else network)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few steps are incomplete
            config = built(method, model, SpikingConfig(coverage="linear", levels=8), timesteps, [batch], Silent())
        assert config.coverage == "linear"
        with counting(model) as spikes:
            logits = model(**batch).logits
        errors.append(float((logits - ann_logits).square().mean()))
    if name == "fas-moves":  # as many moves, so as near
        assert errors[1] == pytest.approx(errors[0], rel=0.05)
    else:
        assert errors[1] < errors[0]
    assert spikes.per_neuron > 0
    depth = depth_of(model)
    assert depth == 4 * ann.config.num_hidden_layers
    expected = {"srp": 4 + 16, "cos": 5 * 16 * depth}
    usual = 16 * depth if method.place(16).get("schedule") == "layerwise" else 16
    assert method.latency(16, depth) == expected.get(name, usual)


@pytest.mark.parametrize("name", sorted(methods()))
def test_the_ledger_finds_the_spikes_of_every_method(name: str, llama: tuple[Any, Any, dict[str, Any]]) -> None:
    ann, network, batch = llama
    model = copy.deepcopy(ann if method_named(name).start == "control" else network)
    built(method_named(name), model, SpikingConfig(coverage="linear", levels=8), 8, [batch], Silent())
    found = ledger(model, batch).forward
    assert not [note for note in found.notes if "not the sum of its spikes" in note]
    assert found.macs == ledger(ann, batch).forward.macs
    assert found.share == ledger(_snn(network), batch).forward.share > 0.5  # all but attention and the head
    with counting(model) as spikes:
        model(**batch)
    assert found.spikes_per_neuron == pytest.approx(spikes.per_neuron)
    assert found.accumulates >= sum(site.accumulates for site in found.sites) > 0


def _snn(network: Any) -> Any:
    return as_snn(copy.deepcopy(network), SpikingConfig(coverage="linear", levels=8, timesteps=8))


@pytest.mark.parametrize("wrong", [lambda f: f._replace(worth=None), lambda f: f._replace(worth=f.worth * 1.01),
                                   lambda f: f._replace(spikes=f.spikes * 0.5, worth=f.worth * 2)])  # fmt: skip
def test_what_is_no_sum_of_spikes_is_charged_as_analog(wrong: Any, llama: tuple[Any, Any, dict[str, Any]]) -> None:
    ann, _, batch = llama
    model = copy.deepcopy(ann)
    built(method_named("las"), model, SpikingConfig(coverage="linear"), 6, [batch], Silent())
    neuron = clock_of(model).neuron
    assert neuron is not None
    clock_of(model).neuron = lambda site, x: wrong(neuron(site, x))
    found = ledger(model, batch).forward
    assert found.macs_replaced == 0
    assert len([note for note in found.notes if "not the sum of its spikes" in note]) == len(sites_of(model))


def test_own_neurons_are_told_to_probes_in_full(llama: tuple[Any, Any, dict[str, Any]]) -> None:
    ann, _, batch = llama
    model = copy.deepcopy(ann)
    built(method_named("las"), model, SpikingConfig(coverage="linear"), 6, [batch], Silent())
    seen: dict[str, tuple[int, ...]] = {}
    clock_of(model).probe = lambda name, spikes: seen.__setitem__(name, tuple(spikes.shape))
    model(**batch)
    assert set(seen) == set(sites_of(model))
    assert {shape[0] for shape in seen.values()} == {6}


def test_calibrated_biases_take_the_mean_error_away(llama: tuple[Any, Any, dict[str, Any]]) -> None:
    ann, _, batch = llama
    model = copy.deepcopy(ann)
    built(method_named("snn-calibration"), model, SpikingConfig(coverage="linear"), 4, [batch], Silent())
    with as_ann(model):
        assert torch.allclose(model(**batch).logits, ann(**batch).logits, atol=1e-5)
        wanted = channel_means(model, [batch], sites_of(model))
    given = channel_means(model, [batch], sites_of(model))
    for name in wanted:
        assert torch.allclose(wanted[name], given[name], atol=1e-4), name


def test_weights_are_reconstructed_layer_by_layer(llama: tuple[Any, Any, dict[str, Any]]) -> None:
    ann, _, batch = llama
    wanted, made = ann(**batch).logits, {}
    for name in ("snn-calibration", "snn-calibration-advanced"):
        made[name] = copy.deepcopy(ann)
        built(method_named(name), made[name], SpikingConfig(coverage="linear"), 4, [batch], Silent())
    light, advanced = made.values()
    changed = {
        name for name, value in light.state_dict().items() if not torch.equal(value, advanced.state_dict()[name])
    }
    layers = {name for name in ann.state_dict() if name.startswith("model.layers.")}
    assert changed == layers  # neither neurons nor embeddings
    with torch.no_grad():
        errors = [float((model(**batch).logits - wanted).square().mean()) for model in (light, advanced)]
    assert errors[1] < 0.9 * errors[0]


def test_a_name_is_registered_once_and_unknown_ones_are_named() -> None:
    with pytest.raises(ConfigError, match="'qcfs' is registered already"):
        register(Method("qcfs", "t", "s", "qcfs", method_named("qcfs").build))
    with pytest.raises(ConfigError, match=r"method 'x' is not known; choose of .*direct-max"):
        method_named("x")
