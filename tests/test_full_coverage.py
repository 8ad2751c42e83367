"""Coverage full: groups at rest, populations, the functions that they stand for, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ann, exact, qcfs_model, snn, tokens
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import fas
from fas.accounting.operations import rule_of
from fas.config import SpikingConfig
from fas.errors import UnsupportedModelError
from fas.models.functions import activation_of, group_for, norm_of
from fas.neurons import Clock, Held
from fas.operators import SpikingGroup, exp2_group, exp2_negative, rsqrt_group
from fas.operators.exponential import exp2_at_rest
from fas.operators.population import Population
from fas.operators.staircase import FEW, active
from fas.runtime import attention
from fas.runtime.control import clock_of, sites_of
from fas.runtime.spikes import counting


def clock(stage: str, **settings: object) -> Clock:
    return Clock(SpikingConfig(levels=15, **settings), stage=stage, depth=1)  # type: ignore[arg-type]


def stepped(group: SpikingGroup | Population, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a group gives for ``rows`` ``[T, …]`` and its spikes: by look-up, or by its neurons (a calibrated key does)."""
    seen: list[torch.Tensor] = []
    group.site.clock.probe = lambda name, spikes: seen.append(spikes)
    out = group(rows.flatten(0, 1))
    group.site.clock.probe = None
    return out, seen[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_group_at_rest_is_its_neurons_step_by_step(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(5, 3, 4, generator=generator, dtype=torch.float64)
    group = SpikingGroup(exp2_group(16), "exp", clock("snn", timesteps=5), levels=1)
    looked_up, spikes = stepped(group, rows)
    group.site.add_parameters(group.site.clock.config.neuron_key)  # as if calibrated: then its neurons are simulated
    simulated, trains = stepped(group, rows)
    torch.testing.assert_close(looked_up, simulated, rtol=0, atol=1e-6)
    assert torch.equal(spikes.to(torch.int8), trains.to(torch.int8))
    assert set(spikes.unique().tolist()) <= {-1, 0, 1}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_population_at_rest_is_its_neurons_step_by_step(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = 3 * torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
    population = Population("norm_input", 5, clock("snn", timesteps=6))
    population.site.log_scale.data = torch.randn(5, generator=generator) / 4 - 1.5
    looked_up, spikes = stepped(population, rows)
    population.site.add_parameters(population.site.clock.config.neuron_key)
    simulated, trains = stepped(population, rows)
    torch.testing.assert_close(looked_up, simulated, rtol=0, atol=1e-6)
    assert torch.equal(spikes.to(torch.int8), trains.to(torch.int8))
    assert set(spikes.unique().tolist()) <= {-1, 0, 1}, "a change of sign is no spike of weight two"
    assert spikes.shape == (6, 2, 2 * 16 * 5)


def test_a_population_resolves_its_neurons_times_their_levels() -> None:
    population = Population("norm_input", 1, clock("qcfs"))
    population.site.log_scale.data.fill_(-2.0)
    x = torch.linspace(-5, 5, 4001)[:, None]
    out = population(x)
    unit, reach = float(population.site.scale[0]), 16 * float(population.site.scale[0])
    assert len(out.unique()) == 2 * 16 + 1
    inside = x.abs() < reach
    assert float((out - x)[inside].abs().max()) <= unit / 2 + 1e-6
    assert torch.equal(out[~inside].abs().round(decimals=5).unique(), torch.tensor([reach]).round(decimals=5))


def test_the_table_of_the_exponential_is_its_group() -> None:
    group = SpikingGroup(exp2_group(16, evenness=1e9), "exp", clock("qcfs"), levels=1)
    u = torch.cat(
        [torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 40, torch.tensor([0.0, 31.99, 32, 1e9])]
    )
    u = u.double()
    table, looked_up = exp2_at_rest(u, group), exp2_negative(u, group)
    torch.testing.assert_close(table, looked_up, rtol=1e-6, atol=1e-12)
    assert float((table - (-u).exp2()).abs().max()) < 0.5 / 16
    assert table[-1] == 0


def test_the_gradient_of_the_exponential_is_that_of_the_function() -> None:
    group = SpikingGroup(exp2_group(16, evenness=1e9), "exp", clock("qcfs"), levels=1)
    u = (torch.rand(500, generator=torch.Generator().manual_seed(0)) * 6).requires_grad_()
    exp2_at_rest(u, group).sum().backward()
    assert u.grad is not None
    torch.testing.assert_close(u.grad, -torch.log(torch.tensor(2.0)) * (-u.detach()).exp2(), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bert_mlm", "qwen3"])
def test_operators_alone_stay_close_to_the_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With operators only (no other site), the model's output is near the ANN's: norms, softmax and activations are right."""
    model = exact(ann(family))
    with torch.no_grad():
        expected = model(tokens())[0]
    names = r"re:.*\.(rsqrt|exponential|reciprocal|softcap|activation|norm_input)"
    config = fas.SpikingConfig(coverage="full", activation="keep", levels=15, targets=(names,))
    fas.prepare(model, config, [{"input_ids": tokens()}])
    with torch.no_grad():
        error = (model(tokens())[0] - expected).square().mean() / expected.square().mean()
    assert 0 < error < 0.04


def test_activations_are_kept_where_the_user_says_so() -> None:
    model = qcfs_model("gpt2", "full", activation="keep")
    act = model.transformer.h[0].mlp.act
    assert not isinstance(act, nn.Identity)
    sites = sites_of(model)
    assert "transformer.h.0.mlp.act.activation" in sites
    assert sites["transformer.h.0.ffn_hidden"].signed
    assert len(sites) == 32, "one group more in each block than with units in place of the activation"
    kept = qcfs_model("gpt2", "linear", activation="keep")
    assert not isinstance(kept.transformer.h[0].mlp.act, nn.Identity)
    assert "transformer.h.0.mlp.act.activation" not in sites_of(kept)


def test_an_activation_without_a_group_is_refused_by_name() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2, activation_function="mish"))
    with pytest.raises(UnsupportedModelError, match=r"transformer\.h\.0\.mlp\.act is a MishActivation"):
        fas.prepare(model, fas.SpikingConfig(coverage="full", activation="keep"), [{"input_ids": tokens()}])
    assert activation_of("x", nn.ReLU()) is None, "a comparison needs no group"


def test_norms_are_known_by_their_class() -> None:
    gemma, llama = ann("gemma2").model.norm, ann("llama").model.norm
    assert (norm_of(gemma).offset, norm_of(llama).offset) == (1.0, 0.0)  # type: ignore[union-attr]
    assert norm_of(nn.LayerNorm(3)).centered  # type: ignore[union-attr]
    assert norm_of(nn.BatchNorm1d(3)) is None
    assert torch.equal(group_for("rsqrt", llama).corners, rsqrt_group(16).corners)


def test_a_group_is_fitted_once_and_every_site_has_tensors_of_its_own() -> None:
    llama, gemma = ann("llama").model.norm, ann("gemma2").model.norm
    assert group_for("rsqrt", llama) is group_for("rsqrt", gemma)
    model = snn("llama", "full")
    corners = [value for name, value in model.named_buffers() if name.endswith("corners")]
    assert len(corners) > 5
    assert len({value.data_ptr() for value in corners}) == len(corners)


def test_stage_2_leaves_operators_as_they_are() -> None:
    model = snn("llama", "full", timesteps=3, levels=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = tokens(4, 9)
    fas.calibrate(model, [{"input_ids": ids}], fas.CalibrationOptions(align_steps=1, global_steps=1))
    key = clock_of(model).config.neuron_key
    assert {key in site.neurons for site in sites_of(model).values() if site.calibrates} == {True}
    assert {key in site.neurons for site in sites_of(model).values() if not site.calibrates} == {False}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_hidden_scores_do_not_count_in_groups() -> None:
    model = snn("llama", "full")
    with counting(model) as spikes, torch.no_grad():
        model(tokens(2, 5))
    found = {name.rsplit(".", 1)[-1]: count for name, count in spikes.sites.items() if ".0." in name}
    assert found["exponential"].neurons == 2 * 4 * 15 * 16
    assert found["reciprocal"].neurons == 2 * 4 * 5 * 16
    assert all(count.per_neuron > 0 for count in found.values())


@pytest.mark.parametrize("padded", [False, True])
def test_the_ledger_hears_of_some_queries_at_a_time(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = snn("gpt2", "full"), {"input_ids": tokens(2, 7)}
    if padded:
        batch["attention_mask"] = torch.ones(2, 7, dtype=torch.int64)
        batch["attention_mask"][0, :3] = 0
    whole = fas.ledger(model, batch)
    calls: list[int] = []
    group = next(module for name, module in model.named_modules() if name.endswith("exponential"))
    group.register_forward_hook(lambda module, args, out: calls.append(args[0].shape[1]))
    monkeypatch.setattr(attention, "PIECE", 3 * 2 * 4 * 4 * 7)  # three queries of two sequences, T = 4, 4 heads, 7 keys
    assert fas.ledger(model, batch).to_dict() == whole.to_dict()
    assert calls == [3, 3, 1]


def test_operations_in_place_are_the_same_operations() -> None:
    aten = torch.ops.aten
    pairs = (
        (aten.neg.default, aten.neg_.default), (aten.exp.default, aten.exp_.default),
        (aten.masked_fill.Scalar, aten.masked_fill_.Scalar), (aten.addcmul.default, aten.addcmul_.default),
    )  # fmt: skip
    for one, other in pairs:
        assert rule_of(one) is rule_of(other)
        assert rule_of(one).role == "pointwise"
    assert rule_of(aten.fill_.Scalar).role == "free"


@pytest.mark.parametrize("neurons", [FEW, FEW + 1])
def test_a_neuron_is_full_from_its_middle_on(neurons: int) -> None:
    """By comparisons and by search alike, also exactly there."""
    corners, widths = torch.arange(neurons).float(), torch.ones(neurons)
    expected = torch.tensor([0, 0, 1, 1, 2, neurons])
    assert torch.equal(active(torch.tensor([-1.0, 0.25, 0.5, 1.25, 1.5, 99.0]), corners, widths).long(), expected)


@pytest.mark.parametrize("signed", [False, True])
def test_what_does_not_count_is_left_out_of_every_neuron(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-3 if signed else 0, 4, (5, 2, 6, 2), generator=generator).to(torch.int8)
    held = Held(numbers, 3, signed)
    counted = torch.rand(2, 6, 1, generator=generator) < 0.5
    spikes = held.spikes() != 0
    assert torch.equal(held.by_neuron(counted), (spikes & counted).flatten(0, -2).sum(0))
    assert torch.equal(held.by_neuron(), spikes.flatten(0, -2).sum(0))
