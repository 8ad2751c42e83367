"""The diagnosis of temporal error: what it says is so, and changes nothing."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import tiny
import torch
from torch import Tensor

import fas
from fas.calibration.diagnosis import ELSEWHERE
from fas.calibration.text import diagnosis_text
from fas.errors import DataError, FasError
from fas.losses import logits_kl
from fas.neurons import Site, qcfs
from fas.report.diagnosis_plots import settling_by_depth, write_settling
from fas.report.html import render
from fas.report.plots import standalone
from fas.report.results import Results
from fas.runtime.control import as_qcfs, clock_of, sites_of

RATE = {"coding": "rate", "timesteps": 3, "levels": 8}
TIMES: dict[str, dict[str, Any]] = {
    "sigma_delta": {"timesteps": 3, "levels": 8},
    "rate": RATE,
    "step": RATE | {"rows": "step"},
}


def batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": tiny.tokens(2, 6, seed)} for seed in (1, 2)]


@pytest.mark.parametrize("time", TIMES)
def test_shares_are_those_of_the_values_that_sites_hand_on(time: str) -> None:
    """One site, recorded on its own: QCFS model, spiking network, final input."""
    model = tiny.snn("gpt2", **TIMES[time])
    site = list(sites_of(model).values())[5]
    seen: list[tuple[Tensor, Tensor]] = []
    handle = site.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        for batch in batches():
            model(**batch, use_cache=False)
            with as_qcfs(model):
                model(**batch, use_cache=False)
    handle.remove()
    finals = [
        tuple(v.view(3, 2, 6, -1).mean(0) if time == "step" else v.view(3, 2, 6, -1)[-1] for v in pair)
        for pair in seen[::2]
    ]
    x, out = (torch.cat(values) for values in zip(*finals, strict=True))
    wanted = torch.cat([out for _, out in seen[1::2]])
    scale = site.scale.detach()
    unit = scale / 8
    found = fas.diagnose(model, batches())
    said = next(entry for layer in found.layers for entry in layer.sites if entry.name == site.name)
    assert said.too_high == pytest.approx(float(((out - wanted) / unit > 0.5).double().mean()))
    assert said.too_low == pytest.approx(float(((wanted - out) / unit > 0.5).double().mean()))
    own = qcfs(x, scale, 8, site.signed)
    assert said.lagging == pytest.approx(float(((out - own).abs() / unit > 0.5).double().mean()))
    low = -scale if site.signed else 0 * scale
    residual = ((out - x.clamp(low, scale)).abs() / unit).mean()
    assert said.residual == pytest.approx(float(residual), rel=1e-5)
    assert 0 < said.differing <= 1


@pytest.mark.parametrize(
    ("family", "coverage", "time"),
    [
        *(("gpt2", "linear", time) for time in TIMES),
        ("llama", "attention", "sigma_delta"),
        ("gpt2", "full", "sigma_delta"),
    ],
)
def test_a_model_none_of_whose_neurons_lags_is_its_qcfs_model(family: str, coverage: str, time: str) -> None:
    """What the cost of a layer is measured with: applied to all layers, nothing is left."""
    from fas.calibration.diagnosis import _never_lagging

    model = tiny.snn(family, coverage, **TIMES[time]).double()
    (batch, _) = batches()
    with torch.no_grad():
        with _never_lagging(list(sites_of(model).values())):
            ideal = model(**batch).logits
        with as_qcfs(model):
            torch.testing.assert_close(ideal, model(**batch).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("time", TIMES)
def test_costs_are_differences_of_the_logits_kl(time: str) -> None:
    model = tiny.snn("gpt2", **TIMES[time])
    before = copy.deepcopy(model.state_dict())
    found = fas.diagnose(model, batches())
    with torch.no_grad():
        kl = 0.0
        for batch in batches():
            with as_qcfs(model):
                target = model(**batch).logits
            kl += float(logits_kl(model(**batch).logits, target)) / 2
    assert found.kl == pytest.approx(kl, rel=1e-4)
    assert [layer.name for layer in found.layers] == ["transformer.0", "transformer.1"]
    assert all(layer.error is not None and layer.error > 0 for layer in found.layers)
    assert sorted(found.worst(1)) == sorted([max(found.layers, key=lambda layer: layer.cost).name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, Site))


def test_a_layer_whose_neurons_follow_at_once_costs_nothing() -> None:
    """With a timestep a level and one layer made slow, that layer is what costs."""
    model = tiny.snn("gpt2", timesteps=24, levels=3, steps=(1,) * 24)
    for site in sites_of(model).values():
        neurons = site.add_parameters(site.clock.config.neuron_key)
        if ".1." in site.name:
            neurons.steps.copy_(torch.tensor([8.0] * 23 + [1.0]))  # a spike worth more than twice the grid never fires
    found = fas.diagnose(model, batches())
    assert found.worst(2)[0] == "transformer.1"
    first = found.layers[0]
    assert [site.lagging for site in first.sites] == [0] * len(first.sites)
    assert all(site.lagging > 0 for site in found.layers[1].sites if site.name.endswith("input"))


@pytest.mark.parametrize("time", ["sigma_delta", "rate", "step"])
def test_distances_are_those_of_a_neuron_whose_settling_is_known(time: str) -> None:
    """One neuron with the constant input ⅝ on a grid of eighths: one code more in each timestep, or ⌊⅝ t + ½⌋ spikes in t."""
    settings = {"timesteps": 8, "levels": 8} | ({"steps": (1,) * 8} if time == "sigma_delta" else TIMES[time])
    config = fas.SpikingConfig(coverage="ffn", **(settings | {"timesteps": 8}))
    model = fas.convert(fas.prepare(tiny.ann("gpt2", n_layer=1), config, batches()))
    block = model.transformer.h[0]
    with torch.no_grad():
        block.mlp.c_fc.weight.zero_()
        block.mlp.c_fc.bias.zero_()[3] = 5 / 8
        block.mlp.c_proj.weight[:3], block.mlp.c_proj.weight[4:] = 0, 0
        for site in sites_of(model).values():
            site.log_scale.zero_()
    outputs: list[Tensor] = []
    handle = block.register_forward_hook(lambda _, args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad(), as_qcfs(model):
        model(**batches()[0])
    handle.remove()
    (whole,) = outputs
    counts = [min(t, 5) / 8 if time == "sigma_delta" else math.floor(5 * t / 8 + 0.5) / t for t in range(1, 9)]
    reader = float(block.mlp.c_proj.weight[3].detach().norm()) * math.sqrt(whole.shape[0] * whole.shape[1])
    wanted = [abs(count - 5 / 8) * reader / float(whole.norm()) for count in counts]
    (layer,) = fas.diagnose(model, batches()[:1]).layers
    assert layer.distances == pytest.approx(wanted, abs=1e-6)
    assert wanted[0] > 100e-6


@pytest.mark.parametrize("time", TIMES)
def test_distances_are_those_of_networks_that_stop_earlier(time: str) -> None:
    """Of a converted model, layer by layer: with T = t its readouts are what they are after t of more timesteps."""
    steps = {"steps": (4, 2, 1)} if time == "sigma_delta" else {}
    model = tiny.snn("llama", **(TIMES[time] | steps))
    found = fas.diagnose(model, batches())
    key = clock_of(model).config
    for t in (1, 2, 3):
        model.set_timesteps(t, coding=key.coding, rows=key.rows, **({"steps": (4, 2, 1)[:t]} if steps else {}))
        shorter = fas.diagnose(model, batches())
        for layer, same in zip(found.layers, shorter.layers, strict=True):
            assert layer.distances[:t] == pytest.approx(same.distances, rel=1e-4)
            assert same.error == pytest.approx(same.distances[-1] ** 2)
    assert all(len(layer.distances) == 3 for layer in found.layers)


def test_sites_outside_the_layers_are_one_entry() -> None:
    model = tiny.snn("bert_sequence", timesteps=3)
    outside = [name for name in sites_of(model) if "pooler" in name]
    assert outside
    found = fas.diagnose(model, batches())
    assert [site.name for site in found.layers[-1].sites] == outside
    assert found.layers[-1].name == ELSEWHERE
    assert found.layers[-1].distances == []


def test_bad_input_is_refused() -> None:
    model = tiny.snn("gpt2", timesteps=3)
    with pytest.raises(DataError, match="at least one batch"):
        fas.diagnose(model, [])
    torn = batches()[0] | {"attention_mask": torch.tensor([[1, 0] + [1] * 4, [1] * 6])}
    with pytest.raises(DataError, match="padding between the tokens of row 0"):
        fas.diagnose(model, [torn])
    model.set_timesteps(clock_of(model).config.levels, schedule="layerwise")
    with pytest.raises(FasError, match="no temporal error"):
        fas.diagnose(model, batches())


def test_the_text_names_the_dearest_layers() -> None:
    found = fas.diagnose(tiny.snn("gpt2", timesteps=3), batches())
    text = diagnosis_text(found.to_dict())
    assert f"KL to the QCFS model {found.kl:.4f}" in text
    assert f"Costs most: {found.worst(1)[0]} (" in text
    assert text.count("ffn_hidden") == 2
    for layer in found.layers:
        said = next(line.split() for line in text.splitlines() if line.split()[:1] == [layer.name])
        assert said[2:] == [f"{distance:.3f}" for distance in layer.distances]


def test_the_report_draws_how_far_each_depth_has_settled(tmp_path: Path) -> None:
    found = fas.diagnose(tiny.snn("gpt2", timesteps=3), batches()).to_dict()
    results = Results("tiny", "text", 0, [], extra={"diagnosis": {"sigma_delta_4_2_1": found}})
    figure = settling_by_depth(found)
    assert figure is not None
    ElementTree.fromstring(figure)
    assert [name in figure for name in ("layer 0", "layer 1", "layer 2")] == [True, True, False]
    assert figure in render(results)
    (written,) = write_settling(results, tmp_path)
    assert written.read_text() == standalone(figure)
    bare = found | {"layers": [layer | {"distances": []} for layer in found["layers"]]}
    assert settling_by_depth(bare) is None
    assert "How far each depth" not in render(Results("tiny", "text", 0, [], extra={"diagnosis": {"rate": bare}}))
