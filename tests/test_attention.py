"""Spiking attention: what it computes, what counts as a spike, what a cache keeps, what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny import ann, snn, tokens
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import fas
from fas.errors import FasError, UnsupportedModelError
from fas.models import REGISTRY
from fas.neurons import Site, qcfs
from fas.runtime.attention import NAME, exponentials, normaliser, spiking_attention
from fas.runtime.control import as_qcfs, at_time, clock_of, sites_of
from fas.runtime.spikes import counting


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mistral", "bert_mlm", "modernbert_mlm"])
def test_without_sites_it_is_the_familys_own_attention(family: str) -> None:
    model, ids = ann(family), tokens()  # in fp64 some families' own attention gives NaN for padding
    model.set_attn_implementation("eager")
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, output_attentions=True)
        model.set_attn_implementation(NAME)
        out = model(ids, attention_mask=mask, output_attentions=True)
    real = mask.bool()
    torch.testing.assert_close(out.logits[real], expected.logits[real], rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(out.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


def test_weights_of_a_row_add_up_to_one_whatever_the_grid() -> None:
    module, clock = nn.Module(), clock_of(snn("gpt2"))
    clock.stage = "qcfs"
    module.add_module("sites", nn.ModuleDict())
    for role in ("query", "key", "value", "probabilities"):
        site = Site(role, 3 if role == "probabilities" else 12, role != "probabilities", 1, clock, kind="operand")
        module.sites[role] = site
        site.log_scale.data.fill_(0.1)
    query, key, value = torch.randn(3, 2, 3, 40, 4)
    output, weights = spiking_attention(module, query, key, value, None)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 40))
    assert len((weights * weights.amax(-1, keepdim=True).reciprocal()).mul(8).unique()) > 1
    low, high = value.amin(2, keepdim=True), value.amax(2, keepdim=True)
    unit = float(module.sites["value"].scale[0].detach()) / 8  # a convex combination of values on the grid
    assert bool((output.transpose(1, 2) <= high + unit).all() and (output.transpose(1, 2) >= low - unit).all())


def test_the_largest_score_of_a_row_has_a_gradient_though_the_grid_clips_it() -> None:
    scores = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    e, _ = exponentials(scores, None)
    clipped = qcfs(e, torch.tensor([0.9], dtype=torch.float64), 8, signed=False)  # e = 1 lies outside of the grid
    weights = clipped * normaliser(clipped)
    (weights * torch.arange(6.0).double()).sum().backward()
    assert scores.grad is not None
    largest = scores.grad.gather(-1, scores.argmax(-1, keepdim=True))
    assert bool((largest != 0).all())
    torch.testing.assert_close(scores.grad.sum(-1), torch.zeros(2, 3, 4).double(), msg="softmax does not see a shift")


def test_exponentials_are_one_at_the_largest_and_zero_where_hidden() -> None:
    scores = torch.randn(2, 3, 4, 5) * 30
    mask = torch.zeros(2, 1, 4, 5)
    mask[..., 3:] = torch.finfo(mask.dtype).min
    mask[1, :, 0] = torch.finfo(mask.dtype).min
    e, visible = exponentials(scores, mask)
    assert visible is not None
    assert torch.equal(visible, mask == 0)
    assert bool((e[..., 3:] == 0).all())
    assert bool((e[1, :, 0] == 0).all()), "a token that sees nothing"
    assert bool((e.amax(-1)[0] == 1).all())


def test_hidden_neurons_and_cached_tokens_do_not_count() -> None:
    model = snn("llama", "attention")
    heads, shared, features = 4, 2, 8
    with torch.no_grad():
        with counting(model) as spikes:
            cache = model(tokens(2, 5), use_cache=True).past_key_values
        neurons = {name.rsplit(".", 1)[-1]: count.neurons for name, count in spikes.sites.items() if ".0." in name}
        assert neurons["probabilities"] == 2 * heads * 15, "a token sees itself and what came before"
        assert neurons["query"] == 2 * 5 * heads * features
        assert neurons["key"] == neurons["value"] == 2 * 5 * shared * features
        with counting(model) as spikes:
            model(tokens(2, 1), past_key_values=cache)
    neurons = {name.rsplit(".", 1)[-1]: count.neurons for name, count in spikes.sites.items() if ".0." in name}
    assert neurons["key"] == neurons["value"] == 2 * shared * features
    assert neurons["probabilities"] == 2 * heads * 6
    assert all(0 < count.per_neuron <= 4 for count in spikes.sites.values())


def test_padding_does_not_count() -> None:
    model = snn("bert_mlm", "attention")
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with counting(model) as spikes, torch.no_grad():
        model(tokens(2, 5), attention_mask=mask)
    neurons = {name.rsplit(".", 1)[-1]: count.neurons for name, count in spikes.sites.items() if ".0." in name}
    assert neurons["query"] == 8 * 4 * 8
    assert neurons["probabilities"] == 4 * (3 * 3 + 5 * 5)


def test_settled_cache_holds_past_keys_still() -> None:
    model = snn("gpt2", "attention", cache="settled").double()
    seen = {}
    site = sites_of(model)["transformer.h.0.key"]
    with torch.no_grad():
        cache = model(tokens(), use_cache=True).past_key_values
        exact = snn("gpt2", "attention").double()
        hook = site.register_forward_hook(lambda module, args, out: seen.__setitem__("keys", (args[0], out)))
        settled = model(tokens(3, 1), past_key_values=cache).logits
        hook.remove()
        with at_time(exact, timesteps=64, steps=(1,) * 64), at_time(model, timesteps=64, steps=(1,) * 64):
            long = [
                m(tokens(3, 1), past_key_values=m(tokens(), use_cache=True).past_key_values).logits
                for m in (exact, model)
            ]
    given, _ = seen["keys"]
    past = given.view(4, 3, *given.shape[1:])[:, :, :-1]
    assert torch.equal(past, past[-1:].expand_as(past)), "the same values at every timestep"
    assert torch.isfinite(settled).all()
    torch.testing.assert_close(*long, rtol=0, atol=1e-9)


def test_another_attention_implementation_is_refused() -> None:
    model = snn("llama", "attention")
    model.set_attn_implementation("eager")
    with pytest.raises(FasError, match=r"switched to the attention implementation 'eager'.*fas_spiking"):
        model(tokens())
    with as_qcfs(model), pytest.raises(FasError, match="switched to"):
        model(tokens())
    model.set_attn_implementation(NAME)
    model(tokens())
    linear = snn("llama", "linear")
    linear.set_attn_implementation("eager")
    linear(tokens())


def test_attention_that_ignores_the_interface_is_refused_and_left_as_it_was() -> None:
    model = ann("llama")
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    before = {name for name, _ in model.named_modules()}
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.query: LlamaForCausalLM does not call"):
        fas.prepare(model, fas.SpikingConfig(coverage="attention"), [{"input_ids": tokens()}])
    assert {name for name, _ in model.named_modules()} == before
    assert model.config._attn_implementation != NAME


@pytest.mark.parametrize("argument", ["s_aux", "sinks"])
def test_arguments_that_would_be_ignored_are_refused(argument: str) -> None:
    query = torch.randn(1, 2, 3, 4)
    with pytest.raises(FasError, match=rf"Module uses \['{argument}'\]"):
        spiking_attention(nn.Module(), query, query, query, None, **{argument: torch.zeros(2)})


def test_operands_can_be_chosen_and_widths_follow_the_heads() -> None:
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=44, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    settings = fas.SpikingConfig(coverage="attention", targets=(r"re:.*\.(key|value|probabilities)",))
    fas.convert(fas.prepare(model, settings, [{"input_ids": tokens()}]))
    assert {name.rsplit(".", 1)[-1]: site.width for name, site in sites_of(model).items()} == {
        "key": 32, "value": 32, "probabilities": 4,
    }  # fmt: skip
    assert torch.isfinite(model(tokens()).logits).all()


def test_every_block_declares_its_attention() -> None:
    for family in REGISTRY.values():
        roles = [spec.role for spec in family.sites if spec.kind in ("operand", "cross")]
        assert len(roles) % 4 == 0, family.name
        # they refuse the coverage: see the tests of encoder–decoder and of vision–language models
        refusing = ("blip", "git", "qwen2_vl")
        assert roles or not family.block or family.name in refusing, family.name
