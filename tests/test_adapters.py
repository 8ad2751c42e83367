"""Adapters of peft on a converted model: they read spikes, train, merge, and come back from disk as they were."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from test_encoder_decoder import inputs_for as t5_inputs
from test_encoder_decoder import t5
from torch import Tensor
from transformers import PreTrainedModel

import fas
from fas.errors import FasError, UnsupportedModelError
from fas.runtime.control import as_qcfs, at_time, sites_of
from fas.runtime.events import EventExecutor
from fas.runtime.spikes import counting

LAYERS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bert_sequence": ["query", "key", "value", "dense"],
}
BEHIND = {"llama": ["down_proj"], "gpt2": ["c_proj"], "bert_sequence": ["dense"]}
"""Layers whose input IA³ scales, not their output."""
MERGED = {
    "lora": lambda family, **c: peft.LoraConfig(r=4, fan_in_fan_out=family == "gpt2", **c),
    "dora": lambda family, **c: peft.LoraConfig(r=4, use_dora=True, fan_in_fan_out=family == "gpt2", **c),
    "ia3": lambda family, **c: peft.IA3Config(feedforward_modules=BEHIND[family], fan_in_fan_out=family == "gpt2", **c),
    "vera": lambda family, **c: peft.VeraConfig(r=4, fan_in_fan_out=family == "gpt2", **c),
    "loha": lambda family, **c: peft.LoHaConfig(r=4, **c),
    "oft": lambda family, **c: peft.OFTConfig(r=0, oft_block_size=4, **c),
    "saved whole": lambda family, **c: peft.LoraConfig(
        r=4, **c | {"target_modules": LAYERS[family][:1]}, modules_to_save=LAYERS[family][-1:]
    ),
}
PROMPTS = {"prefix": peft.PrefixTuningConfig, "prompt": peft.PromptTuningConfig, "p-tuning": peft.PromptEncoderConfig}
CASES = [
    *((kind, "llama", "linear", stage) for kind in MERGED for stage in ("snn", "qcfs")),
    *((kind, "llama", "full", "snn") for kind in MERGED if kind != "saved whole"),
    *((kind, family, "linear", "snn") for kind in ("lora", "dora", "ia3") for family in ("gpt2", "bert_sequence")),
    ("lora", "bert_sequence", "full", "snn"),
    ("lora", "gpt2", "full", "qcfs"),
]


def task(family: str) -> str:
    return "SEQ_CLS" if family == "bert_sequence" else "CAUSAL_LM"


def base(family: str, coverage: str, stage: str) -> PreTrainedModel:
    build = tiny.snn if stage == "snn" else tiny.qcfs_model
    return build(family, coverage, levels=8, timesteps=6).double()


def adapted(kind: str, model: PreTrainedModel, family: str) -> peft.PeftModel:
    """With an adapter at every linear layer (BERT's are called as the sites of operands are, which stay out)."""
    out = {"exclude_modules": r".*\.sites\..*"} if family == "bert_sequence" else {}
    config = MERGED[kind](family, target_modules=LAYERS[family], task_type=task(family), **out)
    return peft.get_peft_model(model, config).double()


def run(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**(inputs or tiny.inputs_for(model))).logits


def train(model: Any, steps: int = 6) -> list[float]:
    inputs = tiny.inputs_for(model)
    labels = (
        torch.arange(3) if model.main_input_name == "input_ids" and not model.can_generate() else inputs["input_ids"]
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(trained, lr=3e-2), []
    model.train()
    for _ in range(steps):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    model.eval()
    return losses


@pytest.mark.parametrize(("kind", "family", "coverage", "stage"), CASES)
def test_an_adapter_trains_merges_and_comes_back(
    kind: str, family: str, coverage: str, stage: str, tmp_path: Path
) -> None:
    """The merged network is the adapter's, to rounding; both are read from disk exactly."""
    model = base(family, coverage, stage)
    untouched, before = copy.deepcopy(model), run(model)
    adapter = adapted(kind, model, family)
    start = run(adapter)
    if kind != "vera":  # whose vectors do not start at nothing
        torch.testing.assert_close(start, before, rtol=0, atol=1e-12)
    losses = train(adapter)
    assert losses[-1] < losses[0]
    with counting(adapter) as fired:
        trained = run(adapter)
    assert (trained - before).abs().max() > 0.02
    adapter.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(untouched), tmp_path / "adapter").double().eval()
    assert torch.equal(run(again), trained)
    merged = adapter.merge_and_unload()
    with counting(merged) as theirs:
        torch.testing.assert_close(run(merged), trained, rtol=0, atol=1e-9)
    assert theirs.per_neuron == fired.per_neuron
    assert (str(merged), list(merged.state_dict())) == (str(untouched), list(untouched.state_dict()))
    merged.save_pretrained(tmp_path / "merged")
    loaded = type(untouched).from_pretrained(tmp_path / "merged", dtype=torch.float64)
    assert torch.equal(run(loaded), run(merged))


@pytest.mark.parametrize("coverage", ["linear", "full"])
def test_weight_and_adapter_are_given_the_same_spikes(coverage: str) -> None:
    model = base("llama", coverage, "snn")
    adapter, given = adapted("lora", model, "llama"), {}

    def see(name: str) -> Any:
        return lambda module, args, out: given.__setitem__(name, args[0])

    for name, module in adapter.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.base_layer.register_forward_hook(see(name + ".base"))
            module.lora_A["default"].register_forward_hook(see(name + ".A"))
    run(adapter)
    assert len(given) == 2 * 14
    sites = sites_of(model)
    for name in {name.rpartition(".")[0] for name in given}:
        assert given[name + ".base"] is given[name + ".A"]
    layer = next(value for name, value in given.items() if name.endswith("1.mlp.up_proj.A"))
    site = sites["model.layers.1.ffn_input"]
    codes = layer / (site.scale.detach().double() / site.levels)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_time_means_for_an_adapter_what_it_means_without(family: str) -> None:
    """Without temporal error the adapter's network is its QCFS network bit by bit, and a cache changes nothing."""
    model = base(family, "linear", "snn")
    adapter = adapted("lora", model, family)
    train(adapter)
    with as_qcfs(adapter):
        expected = run(adapter)
    with at_time(adapter, timesteps=8, schedule="layerwise"):
        assert torch.equal(run(adapter), expected)
    prompt = {"input_ids": tiny.tokens(2, 4), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    cached = adapter.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert torch.equal(adapter.generate(**prompt, max_new_tokens=5, do_sample=False, use_cache=False), cached)


@pytest.mark.parametrize("cache", ["exact", "settled"])
@pytest.mark.parametrize("coverage", ["linear", "full"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert_sequence"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts_and_prefixes(kind: str, family: str, coverage: str, cache: str, tmp_path: Path) -> None:
    """Keys and values of a prefix are constants of all timesteps; embeddings of a prompt are folded with the others."""
    model = tiny.snn(family, coverage, levels=8, timesteps=6)
    model.set_timesteps(cache=cache)
    untouched = copy.deepcopy(model)
    tuned = peft.get_peft_model(model, PROMPTS[kind](num_virtual_tokens=4, task_type=task(family)))
    losses = train(tuned)
    assert losses[-1] < losses[0]
    out = run(tuned)
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(untouched), tmp_path).eval()
    torch.testing.assert_close(run(again), out, rtol=0, atol=1e-5)
    with as_qcfs(tuned):
        expected = run(tuned)
    with at_time(tuned, timesteps=8, schedule="layerwise"):
        assert torch.equal(run(tuned), expected)


def test_a_prefix_is_the_same_at_every_timestep() -> None:
    model = tiny.snn("llama", "linear", timesteps=6)
    tuned = peft.get_peft_model(model, peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    seen = []
    inner = model.model.layers[0].self_attn
    inner.register_forward_hook(lambda m, args, kw, out: seen.append(kw["past_key_values"]), with_kwargs=True)
    with torch.no_grad():
        tuned(input_ids=tiny.tokens(3, 5), use_cache=True)
    keys = seen[0].layers[0].keys.unflatten(0, (6, 3))
    assert keys.shape[3] == 4 + 5
    assert torch.equal(keys[:, :, :, :4], keys[:1, :1, :, :4].expand(6, 3, -1, -1, -1))
    assert not torch.equal(keys[0, :, :, 4:], keys[5, :, :, 4:])


def test_adapters_of_cross_attention() -> None:
    model = t5("gated")
    model = fas.convert(fas.prepare(model, fas.SpikingConfig(coverage="attention"), [t5_inputs(3)])).double()
    given = {k: v for k, v in t5_inputs(2).items() if not k.startswith("decoder")}
    config = peft.LoraConfig(r=4, target_modules=["q", "k", "v", "o", "wo"], task_type="SEQ_2_SEQ_LM")
    adapter = peft.get_peft_model(model, config).double().eval()
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    written = adapter.generate(**given, max_new_tokens=5, do_sample=False)
    out = run(adapter, **t5_inputs(2))
    merged = adapter.merge_and_unload()
    torch.testing.assert_close(run(merged, **t5_inputs(2)), out, rtol=0, atol=1e-9)
    assert torch.equal(merged.generate(**given, max_new_tokens=5, do_sample=False), written)


def test_adapters_that_transformers_puts_in() -> None:
    model = base("llama", "linear", "snn")
    before = run(model)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=LAYERS["llama"], init_lora_weights=False))
    with counting(model) as fired:
        out = run(model)
    assert fired.per_neuron > 0
    assert not torch.equal(out, before)
    model.disable_adapters()
    torch.testing.assert_close(run(model), before, rtol=0, atol=1e-12)


def test_dropout_of_an_adapter_is_off_in_time(caplog: pytest.LogCaptureFixture) -> None:
    """All timesteps must meet one network; a QCFS model may drop what it likes."""
    config = peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=LAYERS["llama"], init_lora_weights=False)
    model = base("llama", "linear", "snn")
    with caplog.at_level(logging.WARNING):
        adapter = peft.get_peft_model(model, config).train()
        assert torch.equal(run(adapter), run(adapter))
    assert "dropout of 0.5 in a converted model is off" in caplog.text
    trained = peft.get_peft_model(base("llama", "linear", "qcfs"), config).train()
    assert not torch.equal(run(trained), run(trained))
    fas.convert(trained)
    assert torch.equal(run(trained), run(trained))


@pytest.mark.parametrize(
    ("config", "coverage", "message"),
    [
        (
            peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, task_type="CAUSAL_LM"),
            "linear",
            "was given 1 rows",
        ),
        (peft.LNTuningConfig(target_modules=["input_layernorm"]), "full", "is a copy of a site"),
        (
            peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["up_proj"]),
            "full",
            "is a copy of a site",
        ),
    ],
)
def test_adapters_that_a_converted_model_cannot_have(config: Any, coverage: str, message: str) -> None:
    adapter = peft.get_peft_model(tiny.snn("llama", coverage), config)
    with pytest.raises(FasError, match=message):
        run(adapter)


def test_norms_may_be_tuned_where_they_are_analog() -> None:
    model = base("llama", "linear", "snn")
    before = copy.deepcopy(model)
    tuned = peft.get_peft_model(model, peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"))
    train(tuned)
    out = run(tuned)
    assert not torch.equal(out, run(before))
    torch.testing.assert_close(run(tuned.merge_and_unload()), out, rtol=0, atol=1e-9)


def test_an_ann_with_adapters_is_not_converted() -> None:
    model = tiny.ann("llama")
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UnsupportedModelError, match=r"q_proj is a peft.*merged \(merge_and_unload\)"):
        fas.prepare(model, fas.SpikingConfig(), [{"input_ids": tiny.tokens()}])


def test_events_are_executed_after_merging() -> None:
    model = base("llama", "linear", "snn")
    adapter = adapted("lora", model, "llama")
    train(adapter)
    out = run(adapter)
    with pytest.raises(FasError, match="merge_and_unload"):
        EventExecutor(model)
    merged = adapter.merge_and_unload()
    torch.testing.assert_close(EventExecutor(merged)(**tiny.inputs_for(merged)).logits, out, rtol=0, atol=1e-8)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_stage_2_and_ledger_know_what_adapters_read(family: str) -> None:
    """Calibrated with adapters or merged: the same neurons. Of the adapter's products one reads spikes, one does not."""
    model = base(family, "linear", "snn").float()
    adapter = adapted("lora", model, family).float()
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    merged = copy.deepcopy(adapter).merge_and_unload()
    batch = tiny.inputs_for(model)
    for each in (model, merged):
        fas.calibrate(each, [batch])
    for one, other in zip(sites_of(model).values(), sites_of(merged).values(), strict=True):
        (first,), (second,) = one.neurons.values(), other.neurons.values()
        torch.testing.assert_close(first.log_threshold, second.log_threshold, rtol=1e-3, atol=1e-3)
    ours, theirs = (fas.ledger(each, batch).forward for each in (model, merged))
    assert ours.spikes == pytest.approx(theirs.spikes, rel=0.01)
    added = ours.macs_replaced - theirs.macs_replaced
    rows, rank = 21, 4
    widths = sum(m.in_features for m in adapter.modules() if isinstance(m, peft.tuners.lora.LoraLayer))
    assert added == rows * rank * widths


def test_accelerated_computes_the_same() -> None:
    model = base("llama", "linear", "snn").float()
    adapter = adapted("lora", model, "llama").float()
    train(adapter)
    expected = run(adapter)
    for bits in (0, 24):
        with fas.accelerated(adapter, bits):
            torch.testing.assert_close(run(adapter), expected, rtol=1e-4, atol=1e-4)
