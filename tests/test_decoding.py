"""Writing tokens on FAS's CPU kernels: products of what fires, attention in place, caches with room, whole models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import test_encoder_decoder
import tiny
import tiny_vl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache

import fas
from fas import convert, prepare
from fas.config import SpikingConfig
from fas.neurons.native import kernels
from fas.neurons.native.decoding import Dense, Gather, Weights, active, attend
from fas.runtime import decoding, products
from fas.runtime.control import sites_of

pytestmark = pytest.mark.skipif(not kernels.takes(torch.zeros(1)), reason="no compiled kernels here")
MANY = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every processor what is used on those with AVX-512."""
    monkeypatch.setattr(products, "is_wide", lambda: True)


def close(found: Tensor, wanted: Tensor, of: float = 1e-5) -> bool:
    size = float(wanted.abs().max()) + 1e-6
    return bool(((found.double() - wanted.double()).abs() <= of * size).all())


def equal_to_rounding(found: Tensor, wanted: Tensor, terms: Tensor) -> bool:
    """Sums in fp32 are off by a share of the sum of their ``terms``' sizes, and are then rounded to their own type."""
    own = 0 if found.dtype == torch.float32 else torch.finfo(found.dtype).eps / 2 * wanted.abs()
    return bool(((found.double() - wanted).abs() <= own + 2e-6 * terms).all())


@MANY
@given(
    st.integers(1, 19), st.integers(1, 90), st.integers(1, 1100), st.floats(0, 1), st.booleans(),
    st.sampled_from(["float32", "bfloat16", "int16", "int8"]), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_products_of_what_fires(
    rows: int, inputs: int, outputs: int, share: float, based: bool, kind: str, wide: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(inputs, generator=generator) if based else None
    unit = torch.rand(inputs, generator=generator) + 0.1
    dtype = torch.float32 if wide else torch.bfloat16
    fires = torch.rand(inputs, generator=generator) < share
    codes = torch.randint(-4, 5, (rows, inputs), generator=generator) * fires
    x = codes * unit + (0 if base is None else base)
    if not wide:
        x = x.to(dtype)
        base = base.to(dtype).float() if base is not None else None
    weight = torch.randn(inputs, outputs, generator=generator)
    step, divided = None, None
    if kind.startswith("int"):
        step, divided = torch.rand(outputs, generator=generator), unit
        weight = (weight * (30 if kind == "int8" else 9000)).round().clamp(-127 if kind == "int8" else -32767, 127)
    weight = weight.to(getattr(torch, kind))
    bias = torch.randn(outputs, generator=generator)
    found = Gather(Weights(weight, bias, step, divided, base))(x)
    wanted = (x.double() - (0 if base is None else base.double())) / (1 if divided is None else divided.double())
    parts = weight.double() * (1 if step is None else step.double())
    assert found.dtype == dtype
    assert equal_to_rounding(found, wanted @ parts + bias.double(), wanted.abs() @ parts.abs() + bias.abs())
    silent = (x.float() == (0 if base is None else base)).all(0)
    assert active(x, base) == int((~silent).sum())


@MANY
@given(
    st.integers(1, 19), st.integers(1, 90) | st.integers(1020, 1060), st.integers(1, 60), st.booleans(), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
def test_products_of_which_all_counts(
    rows: int, inputs: int, outputs: int, biased: bool, wide: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float32 if wide else torch.bfloat16
    x, weight = (torch.randn(size, inputs, generator=generator).to(dtype) for size in (rows, outputs))
    bias = torch.randn(outputs, generator=generator) if biased else None
    found = Dense(weight, bias)(x)
    bias = torch.zeros(outputs) if bias is None else bias
    terms = x.double().abs() @ weight.double().abs().T + bias.abs()
    assert found.dtype == dtype
    assert equal_to_rounding(found, x.double() @ weight.double().T + bias, terms)


def test_what_is_silent_is_not_read() -> None:
    """Weights of silent inputs are NaN here."""
    weight, x = torch.randn(50, 40), torch.randn(8, 50)
    x[:, ::3], weight[::3] = 0, float("nan")
    assert close(Gather(Weights(weight))(x), x @ weight.nan_to_num())
    assert torch.equal(Gather(Weights(weight, torch.ones(40)))(torch.zeros(3, 50)), torch.ones(3, 40))
    x[2, 4] = float("nan")
    assert Gather(Weights(weight))(x)[2].isnan().all()


@MANY
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 70), st.integers(1, 40),
    st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from(["none", "row", "head"]), st.integers(0, 2**31),
)  # fmt: skip
def test_attention_of_one_token(
    rows: int, shared: int, groups: int, tokens: int, width: int, dtype: torch.dtype, mask: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads = shared * groups
    query = torch.randn(rows, heads, width, generator=generator).to(dtype)
    room = torch.randn(2, rows, shared, tokens + 7, width, generator=generator).to(dtype) * 3
    keys, values = room[:, :, :, :tokens]
    hidden = None
    if mask != "none":
        hidden = torch.zeros(rows, heads if mask == "head" else 1, tokens)
        hidden[torch.rand(hidden.shape, generator=generator) < 0.5] = float("-inf")
        hidden[..., 0] = 0.3
    found = attend(query, keys, values, hidden, 0.4)
    wide_keys, wide_values = (entry.double().repeat_interleave(groups, 1) for entry in (keys, values))
    scores = (query.double().unsqueeze(2) @ wide_keys.mT)[:, :, 0] * 0.4 + (0 if hidden is None else hidden)
    wanted = (scores.softmax(-1).unsqueeze(2) @ wide_values)[:, :, 0]
    assert found.dtype == dtype
    assert (
        (found.double() - wanted).abs() <= (1e-5 if dtype == torch.float32 else 1e-2) * wide_values.abs().max()
    ).all()


def test_a_token_that_sees_nothing_is_zero() -> None:
    one = torch.ones(1, 1, 4, 8)
    assert torch.equal(attend(one[:, :, 0], one, one, torch.full((1, 1, 4), float("-inf")), 1.0), torch.zeros(1, 1, 8))


DECODERS = ["gpt2", "opt", "llama", "gpt_neox", "mistral", "qwen3", "gemma2", "phi3"]


def converted(family: str, coverage: Any = "linear", **time: Any) -> Any:
    ann = tiny.ann(family).eval()
    config = SpikingConfig(**{"coverage": coverage, "levels": 8, "timesteps": 4} | time)
    model = convert(prepare(ann, config, [tiny.inputs_for(ann, 4)])).eval()
    for index, site in enumerate(sites_of(model).values()):  # as calibrated: other thresholds and constants
        if site.calibrates:
            entry = site.add_parameters(site.clock.config.neuron_key)
            entry.log_threshold.data += 0.1
            entry.constant.fill_(0.05 * (index % 3))
    return model


def written(model: Any, batch: dict[str, Tensor], steps: int = 5) -> Tensor:
    """Logits of prompt and of ``steps`` more tokens, one after another behind a cache."""
    mask, ids = batch["attention_mask"], batch["input_ids"]
    said = model(input_ids=ids, attention_mask=mask, use_cache=True)
    logits, generator = [said.logits[:, -1]], torch.Generator().manual_seed(3)
    for _ in range(steps):
        new = torch.randint(3, tiny.VOCAB, (len(ids), 1), generator=generator)
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        said = model(input_ids=new, attention_mask=mask, past_key_values=said.past_key_values, use_cache=True)
        logits.append(said.logits[:, -1])
    return torch.stack(logits)


def prompts(padded: bool) -> dict[str, Tensor]:
    ids = torch.randint(3, tiny.VOCAB, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_models_write_the_same(family: str, attention: str) -> None:
    for coverage, time in (
        ("linear", {}),
        ("ffn", {"coding": "rate"}),
        ("linear", {"schedule": "layerwise", "timesteps": 8}),
    ):
        model = converted(family, coverage, **time)
        if family == "gemma2" and attention == "sdpa":
            pytest.skip("transformers knows no sdpa for it")
        model.set_attn_implementation(attention)
        for padded in (False, family not in ("gemma2",)):
            wanted = written(model, prompts(padded))
            with fas.accelerated(model):
                found = written(model, prompts(padded))
            # a value at the edge between two codes may fall on either side: few positions, never all
            apart = ((found - wanted).abs().amax((1, 2)) > 1e-3 * wanted.abs().max()).float().mean()
            assert apart <= 0.2, (coverage, time, padded)
            assert torch.equal(written(model, prompts(padded)), wanted)


@pytest.mark.parametrize("coverage", ["attention", "full"])
@torch.no_grad()
def test_attention_that_spikes_stays_as_it_is(coverage: str) -> None:
    model = converted("llama", coverage)
    wanted = written(model, prompts(True))
    with fas.accelerated(model):
        assert close(written(model, prompts(True)), wanted, 1e-3)


@torch.no_grad()
def test_it_is_the_kernels_that_write(monkeypatch: pytest.MonkeyPatch) -> None:
    model, met = converted("gpt2"), {"__call__": 0, "attend": 0}

    def counted(name: str, module: Any) -> None:
        kernel = getattr(module, name)

        def run(*arguments: Any) -> Any:
            met[name] += 1
            return kernel(*arguments)

        monkeypatch.setattr(module, name, run)

    counted("__call__", products.Gather)
    counted("attend", decoding)
    with fas.accelerated(model):
        said = model(**prompts(False), use_cache=True)
        assert met == {"__call__": 0, "attend": 0}  # T·B·S = 48 rows are many
        model(input_ids=torch.tensor([[5], [6]]), past_key_values=said.past_key_values)
    assert met == {"__call__": 2 * 4, "attend": 2}


def of_any_kind(name: str) -> tuple[Any, dict[str, Tensor]]:
    """A model and what it is asked: a decoder, T5, or one that sees."""
    if name in tiny.DECODERS:
        model, asked = converted(name), prompts(True)
    elif name == "t5":
        model, asked = test_encoder_decoder.snn("gated"), test_encoder_decoder.source(test_encoder_decoder.inputs_for())
    else:
        model, asked = tiny_vl.snn(name), tiny_vl.batch(name)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 2
    return model, asked


@pytest.mark.parametrize("cache", ["exact", "settled"])
@pytest.mark.parametrize(
    "name", ["llama", "opt_projected", "gemma3", "t5", "llava", "smolvlm", "blip2", "blip", "git", "qwen2_vl"]
)
@torch.no_grad()
def test_generation_is_the_same(name: str, cache: str) -> None:
    model, asked = of_any_kind(name)
    model.set_timesteps(cache=cache)
    for how in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        settings_of = {"max_new_tokens": 8, "do_sample": False, **how}
        wanted = model.generate(**asked, **settings_of)
        with fas.accelerated(model):
            assert torch.equal(model.generate(**asked, **settings_of), wanted), how


@torch.no_grad()
def test_branches_of_a_cache_do_not_write_over_each_other() -> None:
    """Shallow copies share a buffer: the second to write takes another; what was cropped is written over."""
    model = converted("gpt2")
    new = [torch.tensor([[7], [8]]), torch.tensor([[9], [10]])]
    with fas.accelerated(model):
        said = model(**prompts(False), use_cache=True)
        alone = [model(input_ids=ids, past_key_values=copy.deepcopy(said.past_key_values)).logits for ids in new]
        branches = [copy.copy(said.past_key_values) for _ in new]
        for branch in branches:
            branch.layers = [copy.copy(layer) for layer in said.past_key_values.layers]
        for branch, ids in zip(branches, new, strict=True):
            model(input_ids=ids, past_key_values=branch)
        again = [model(input_ids=ids, past_key_values=b).logits for ids, b in zip(new, branches, strict=True)]
        for index, branch in enumerate(branches):
            branch.crop(-2)
            assert torch.equal(model(input_ids=new[index], past_key_values=branch).logits, alone[index])
        twice = copy.deepcopy(said.past_key_values)
        model(input_ids=new[0], past_key_values=twice)
        assert torch.equal(model(input_ids=new[0], past_key_values=twice).logits, again[0])


@pytest.mark.parametrize("by_config", [True, False])
@torch.no_grad()
def test_who_asks_for_weights_of_attention_gets_them(by_config: bool) -> None:
    model = converted("llama")
    model.set_attn_implementation("eager")
    model.config.output_attentions = by_config
    asked = {} if by_config else {"output_attentions": True}
    with fas.accelerated(model):
        cache = model(**prompts(False), use_cache=True).past_key_values
        said = model(input_ids=torch.tensor([[5], [6]]), past_key_values=cache, **asked)
    assert [weights.shape for weights in said.attentions] == [(2, 4, 1, 7)] * 2


@torch.no_grad()
def test_a_cache_goes_in_and_out() -> None:
    """Filled outside and read inside, and the other way round; the ANN's caches are not touched."""
    model = converted("gpt2")
    wanted = written(model, prompts(False), 2)
    said = model(**prompts(False), use_cache=True)
    generator, logits = torch.Generator().manual_seed(3), []
    for inside in (True, False):
        new = torch.randint(3, tiny.VOCAB, (2, 1), generator=generator)
        if inside:
            with fas.accelerated(model):
                said = model(input_ids=new, past_key_values=said.past_key_values, use_cache=True)
        else:
            said = model(input_ids=new, past_key_values=said.past_key_values, use_cache=True)
        logits.append(said.logits[:, -1])
    assert close(torch.stack(logits), wanted[1:], 1e-4)
    assert not hasattr(DynamicCache(config=model.config).layers[0], "_fas")


@torch.no_grad()
def test_weights_lie_as_before_afterwards() -> None:
    model = converted("llama")
    before = {name: (value.clone(), value.stride()) for name, value in model.state_dict().items()}
    with fas.accelerated(model):
        layer = model.model.layers[0].mlp.down_proj
        assert layer.weight.shape == before["model.layers.0.mlp.down_proj.weight"][0].shape
        assert layer.weight.T.is_contiguous()
    assert all(torch.equal(v, before[n][0]) and v.stride() == before[n][1] for n, v in model.state_dict().items())


@torch.no_grad()
def test_bfloat16_and_few_bits() -> None:
    """A random model may go elsewhere behind a rounding, so each layer is held against its own product."""
    half = torch.bfloat16
    for dtype, bits, of in ((half, 0, 1e-2), (half, 16, 1e-2), (half, 8, 5e-2), (torch.float32, 8, 5e-2)):
        model = converted("llama").to(dtype)
        checked = []

        def check(module: nn.Module, product: Any, of: float = of, checked: list[Any] = checked) -> Any:
            def forward(x: Tensor) -> Tensor:
                found, wanted = product(x), type(module).forward(module, x)
                assert found.dtype == wanted.dtype
                if x.shape[-2] == 1:
                    assert close(found, wanted, of)
                    checked.append(module)
                return found

            return forward

        with fas.accelerated(model, bits):
            for module in model.modules():
                if (product := module.__dict__.get("forward")) is not None:
                    module.forward = check(module, product)  # type: ignore[method-assign]
            written(model, prompts(False), 1)
        assert len(checked) == 2 * 7 + 1


@torch.no_grad()
def test_where_many_fire_and_vectors_are_short_products_are_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "is_wide", lambda: False)
    model, shares = converted("gpt2"), []
    for name, site in sites_of(model).items():
        if "hidden" in name:  # rarely
            site.neurons[site.clock.config.neuron_key].log_threshold.data += 1.5

    class Counted(Gather):
        def __call__(self, x: Tensor) -> Tensor:
            shares.append(active(x.flatten(0, -2), self.weights.base) / x.shape[-1])
            return super().__call__(x)

    monkeypatch.setattr(products, "Gather", Counted)
    monkeypatch.setattr(products.Dense, "__call__", lambda *arguments: pytest.fail("short vectors"))
    wanted = written(model, prompts(False), 2)
    with fas.accelerated(model):
        found = written(model, prompts(False), 2)
    assert close(found, wanted, 1e-4)
    assert 0 < len(shares) < 2 * 2 * 4  # some layers of some tokens
    assert max(shares) <= products.WORTH
