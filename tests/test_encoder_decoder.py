"""Encoder–decoder models: two segments, cross-attention, and the caches of both attentions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import (
    CODINGS,
    STRATEGIES,
    check_events,
    check_generation,
    check_order,
    check_reload,
    check_rows,
    check_without_time,
    out,
)  # fmt: skip
from kept import copy_of
from tiny import VOCAB, tokens
from torch import Tensor, nn
from transformers import EncoderDecoderCache, PreTrainedModel, T5Config, T5EncoderModel, T5ForConditionalGeneration

import fas
from fas.calibration import CalibrationOptions
from fas.errors import FasError
from fas.models import find_segments
from fas.report.inspection import Workload, inspect_model
from fas.runtime.control import as_qcfs, sites_of
from fas.runtime.spikes import counting

KINDS = {"plain": "relu", "gated": "gated-gelu"}
LAYERS = {"num_layers": 3, "num_decoder_layers": 2}
kinds = pytest.mark.parametrize("kind", KINDS)
codings = pytest.mark.parametrize("coding", CODINGS)


def t5(kind: str, model_class: type = T5ForConditionalGeneration) -> PreTrainedModel:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=44, num_heads=4, feed_forward_proj=KINDS[kind], pad_token_id=2,
        eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False,
        architectures=["T5ForConditionalGeneration"], **LAYERS,
    )  # fmt: skip
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 1.0 if "shared" in name else 0.3)
    if model.can_generate():
        model.generation_config.eos_token_id = None  # generations have the length that a test asks for
    return model.eval()


def inputs_for(batch: int = 3) -> dict[str, Tensor]:
    """Source (the second row is padded) and target tokens."""
    ids, mask = tokens(batch, 7), torch.ones(batch, 7, dtype=torch.long)
    ids[1:2, 5:], mask[1:2, 5:] = 2, 0
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": tokens(batch, 5, seed=2)}


def snn(kind: str, coverage: str = "linear", **settings: Any) -> PreTrainedModel:
    def build() -> PreTrainedModel:
        config = fas.SpikingConfig(coverage=coverage, **({"levels": 8, "timesteps": 4} | settings))
        return fas.prepare(t5(kind), config, [inputs_for()])

    return fas.convert(copy_of(("t5", kind, coverage, sorted(settings.items())), build))


def source(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


@kinds
def test_sites(kind: str) -> None:
    model = snn(kind)
    assert [s.family.segment for s in find_segments(model)] == ["T5Stack", "T5Stack"]
    sites = sites_of(model)
    assert len(sites) == 4 * 3 + 7 * 2
    names = [name.rsplit(".", 1)[-1] for name in sites if name.startswith("decoder.block.1.")]
    assert names == [
        "attention_input", "attention_output", "cross_query_input", "cross_states_input", "cross_output", "ffn_input",
        "ffn_hidden",
    ]  # fmt: skip
    assert [sites[f"decoder.block.0.{n}"].consumers for n in names] == [3, 1, 1, 2, 1, 2 if kind == "gated" else 1, 1]
    assert sites["encoder.block.0.ffn_hidden"].signed == (kind == "gated")
    assert (sites["encoder.block.0.ffn_hidden"].rotation.block > 1) == (kind == "gated"), "products are rotated"
    linears = [m for s in find_segments(model) for m in s.module.modules() if isinstance(m, nn.Linear)]
    assert sum(site.consumers for site in sites.values()) == len(linears)
    assert len(sites_of(snn(kind, "ffn"))) == 5
    check_order(model, inputs_for())


@kinds
@codings
def test_loaded_model_is_bit_identical(kind: str, coding: str, tmp_path: Path) -> None:
    for coverage in ("ffn", "linear"):
        check_reload(snn(kind, coverage, **CODINGS[coding]), inputs_for(), tmp_path / coverage)
    low = T5ForConditionalGeneration.from_pretrained(tmp_path / "linear", dtype=torch.bfloat16)
    check_reload(low, inputs_for(), tmp_path / "bf16")


@kinds
def test_layerwise_and_settled_neurons_equal_the_qcfs_model(kind: str) -> None:
    for coverage, sites in (("ffn", 3), ("linear", 14)):
        check_without_time(snn(kind, coverage, levels=4).double(), inputs_for(), sites)


@kinds
@codings
def test_events_equal_the_folded_run(kind: str, coding: str) -> None:
    check_events(snn(kind, **CODINGS[coding]).double(), inputs_for())


@kinds
@codings
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cached_generation_equals_uncached(kind: str, coding: str, strategy: str) -> None:
    generated = check_generation(snn(kind, **CODINGS[coding]).double(), source(inputs_for()), strategy)
    assert generated.shape[1] == 7
    assert len(generated.unique()) > 5


def test_rows_of_a_batch_do_not_meet_and_padding_changes_nothing() -> None:
    model, inputs = snn("gated").double(), inputs_for()
    check_rows(model, inputs, [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(3)])
    short = {"input_ids": inputs["input_ids"][1:2, :5], "decoder_input_ids": inputs["decoder_input_ids"][1:2]}
    torch.testing.assert_close(out(model, **inputs)[1:2], out(model, **short))
    prefix = inputs | {"decoder_input_ids": inputs["decoder_input_ids"][:, :3]}
    torch.testing.assert_close(out(model, **inputs)[:, :3], out(model, **prefix))


def test_what_the_caches_hold() -> None:
    model, inputs = snn("gated", timesteps=4), inputs_for()
    token = inputs["decoder_input_ids"][:, :1]
    for kind, rows in (("exact", 12), ("settled", 3)):
        model.set_timesteps(cache=kind)
        with torch.no_grad():
            first = model(**inputs, use_cache=True)
            cache = first.past_key_values
            assert isinstance(cache, EncoderDecoderCache)
            for part in (cache.self_attention_cache, cache.cross_attention_cache):
                assert {layer.__dict__["keys"].shape[0] for layer in part.layers} == {rows}
            assert {layer.keys.shape[0] for layer in cache.cross_attention_cache.layers} == {12}, "to readers"
            encoded = model.get_encoder()(**source(inputs))
            model(
                encoder_outputs=encoded, attention_mask=inputs["attention_mask"], decoder_input_ids=token,
                past_key_values=cache,
            )  # fmt: skip
            cross = cache.cross_attention_cache.layers[0]
            before = cross.keys.unflatten(0, (4, 3))
            cache.reorder_cache(torch.tensor([2, 0, 1]))
            assert torch.equal(cross.keys.unflatten(0, (4, 3)), before[:, [2, 0, 1]])
            cache.batch_repeat_interleave(2)
            assert torch.equal(cross.keys.unflatten(0, (4, 6)), before[:, [2, 2, 0, 0, 1, 1]])
            cache.batch_select_indices(torch.tensor([0]))
            assert torch.equal(cross.keys.unflatten(0, (4, 1)), before[:, [2]])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_settled_cache_generates(strategy: str) -> None:
    model, ids = snn("plain").double(), source(inputs_for())
    model.set_timesteps(1, cache="exact")
    exact = check_generation(model, ids, strategy)
    model.set_timesteps(cache="settled")
    assert torch.equal(check_generation(model, ids, strategy), exact), "with one timestep there is nothing to leave out"
    model.set_timesteps(24, steps=(1,) * 24)
    torch.manual_seed(0)
    settled = model.generate(**ids, max_new_tokens=6, **STRATEGIES[strategy])
    assert settled.shape == exact.shape


def test_the_settled_cache_reads_what_the_encoder_settled_to() -> None:
    """After enough unit steps nothing moves any more, so leaving out the way there changes nothing."""
    model, inputs = snn("plain", levels=3).double(), inputs_for()
    with as_qcfs(model):
        expected = out(model, **inputs)
    model.set_timesteps(42, steps=(1,) * 42, cache="settled")
    cache, logits = None, []
    with torch.no_grad():
        for position in range(5):
            step = inputs | {"decoder_input_ids": inputs["decoder_input_ids"][:, position : position + 1]}
            outputs = model(**step, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            logits.append(outputs.logits)
    torch.testing.assert_close(torch.cat(logits, 1), expected, rtol=0, atol=1e-9)


def test_padding_is_not_counted_and_the_target_has_no_mask_of_the_source() -> None:
    model, inputs = snn("plain"), inputs_for()
    inputs["decoder_input_ids"] = tokens(3, 7, seed=2)  # as long as the source
    with counting(model) as spikes:
        out(model, **inputs)
    assert spikes.sites["encoder.block.0.ffn_input"].neurons == (3 * 7 - 2) * 32
    assert spikes.sites["decoder.block.0.ffn_input"].neurons == 3 * 7 * 32


def test_inspection(tmp_path: Path) -> None:
    t5("gated").config.save_pretrained(tmp_path)
    found = inspect_model("tiny", str(tmp_path), "linear", Workload())
    assert found.architecture == "T5ForConditionalGeneration"
    assert found.segments == {"encoder": 3, "decoder": 2}
    assert sum(group.count for group in found.sites) == 26


@kinds
def test_attention_spikes(kind: str) -> None:
    model = snn(kind, "attention").double()
    assert len(sites_of(model)) == 26 + 4 * (3 + 2 * 2)
    check_events(model, inputs_for())
    check_generation(model, source(inputs_for()), "beam")


def test_refusals() -> None:
    model, inputs = snn("plain"), inputs_for()
    with pytest.raises(FasError, match=r"T5Stack got the tensor argument 'unknown', which FAS cannot fold"):
        out(model, **inputs, unknown=torch.ones(3, 7))
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        model.set_timesteps(2)
        with pytest.raises(FasError, match="the cache was filled with exact in sigma_delta_4_2_2_1 and is now read"):
            model(**inputs, past_key_values=cache)


def test_the_encoder_alone(tmp_path: Path) -> None:
    ids = source(inputs_for())
    encoder = fas.convert(fas.prepare(t5("gated", T5EncoderModel), fas.SpikingConfig(levels=4), [ids]))
    assert len(sites_of(encoder)) == 12
    check_reload(encoder, ids, tmp_path)
    check_events(encoder.double(), ids)


def test_stage_2_calibrates_both_segments() -> None:
    model, inputs = snn("gated", timesteps=2, levels=3), inputs_for()
    del inputs["attention_mask"]  # calibration takes full sequences
    with as_qcfs(model):
        target = out(model, **inputs)
    before = (out(model, **inputs) - target).square().mean()
    fas.calibrate(model, [inputs], CalibrationOptions(align_steps=2, global_steps=2))
    assert (out(model, **inputs) - target).square().mean() < before


@kinds
@pytest.mark.parametrize("coverage", ["linear", "full"])
def test_ledger(kind: str, coverage: str) -> None:
    """Two segments, cross-attention and a decoding step that reads the encoder's cached keys: all of it is accounted for."""
    model = fas.convert(fas.prepare(t5(kind), fas.SpikingConfig(coverage=coverage, timesteps=3), [inputs_for()]))
    found = fas.ledger(model, inputs_for(), decode=True)
    for statement in (found.forward, found.decode):
        assert statement is not None
        assert statement.unknown == {}
        assert statement.notes == []
    assert {site.name for site in found.forward.sites} == set(sites_of(model))
    decoded = {site.name for site in found.decode.sites}  # type: ignore[union-attr]
    assert not any(name.startswith("encoder.") for name in decoded)  # the encoder has run before
    assert any(name.startswith("decoder.") for name in decoded)
