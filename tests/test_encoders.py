"""The contract of converted encoders: every head, saved and loaded, without time and through it, padded and not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contract import CODINGS
from tiny import BLOCK_SITES, COVERAGES, ENCODERS, inputs_for, snn, tokens
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedModel, SiglipConfig, SiglipModel

import fas
from fas.calibration import CalibrationOptions
from fas.models import find_segments
from fas.runtime.control import as_qcfs, at_time, clock_of, sites_of
from fas.runtime.events import EventExecutor
from fas.runtime.spikes import counting

HEADS = {  # sites of the segment behind its blocks; with more coverage they stay
    "bert_sequence": {"ffn": set(), "linear": {"pooler_input"}},
    "bert_choice": {"ffn": set(), "linear": {"pooler_input"}},
    "siglip_text": {"ffn": set(), "linear": {"head_input"}},
    "siglip_image": {"ffn": {"head_ffn_hidden"}, "linear": {"head_ffn_input", "head_ffn_hidden"}},
}
# coverage full: of two blocks 16 sites, 2 functions of softmax each, 2 a norm; norms behind (BERT: in front of) the blocks, …
FULL = {
    "bert": 2 * (8 + 2 + 4) + 2, "roberta": 30, "distilbert": 30, "vit": 30, "clip_text": 30, "clip_image": 30 + 2,
    "modernbert": 2 * (8 + 2 + 3) + 2 * 5,  # … a gated FFN, no norm in front of the first attention …
    "bert_sequence": 30 + 2, "bert_choice": 30 + 2,  # … the pooler's input and tanh …
    "siglip_text": 30 + 1, "siglip_image": 30 + 2 + 2,  # … the head's linear layers and norm
}  # fmt: skip
encoders = pytest.mark.parametrize("family", ENCODERS)
every = pytest.mark.parametrize(
    ("family", "coverage", "coding"), [(f, v, c) for f in ENCODERS for v in COVERAGES for c in CODINGS]
)


def out(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    """The model's first output: logits, or the logits of where an answer starts."""
    with torch.no_grad():
        return model(**inputs)[0]


def spikes_of(model: PreTrainedModel, **inputs: Tensor) -> dict[str, Tensor]:
    clock, spikes = clock_of(model), {}
    clock.probe = lambda name, train: spikes.__setitem__(name, train.clone())
    out(model, **inputs)
    clock.probe = None
    return spikes


@pytest.mark.parametrize("coverage", COVERAGES)
@encoders
def test_site_counts(family: str, coverage: str) -> None:
    sites = sites_of(snn(family, coverage))
    by_coverage = HEADS.get(family, {})
    heads = by_coverage.get(coverage, by_coverage.get("linear", set()))
    if coverage == "full":
        assert len(sites) == FULL.get(family, FULL.get(family.split("_")[0]))
        return
    assert len(sites) == 2 * BLOCK_SITES[coverage] + len(heads)
    assert {name.rsplit(".", 1)[-1] for name in list(sites)[len(sites) - len(heads) :]} == heads, "behind the blocks"


@every
def test_loaded_model_is_bit_identical(family: str, coverage: str, coding: str, tmp_path: Path) -> None:
    model = snn(family, coverage, **CODINGS[coding])
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        if dtype != torch.float32:
            model = type(model).from_pretrained(tmp_path / "torch.float32", dtype=dtype)
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder)
        assert loaded.dtype == dtype
        for batch, length in ((1, 1), (3, 7)):
            inputs = inputs_for(model, batch, length)
            assert torch.equal(out(loaded, **inputs), out(model, **inputs))


@pytest.mark.parametrize("coverage", COVERAGES)
@encoders
def test_layerwise_and_settled_neurons_equal_the_qcfs_model(family: str, coverage: str) -> None:
    model = snn(family, coverage, levels=4).double()
    inputs = inputs_for(model)
    with as_qcfs(model):
        expected = out(model, **inputs)
    with at_time(model, timesteps=4, schedule="layerwise"):
        assert torch.equal(out(model, **inputs), expected)
    steps = 4 * len(sites_of(model))
    model.set_timesteps(steps, steps=(1,) * steps)
    torch.testing.assert_close(out(model, **inputs), expected, rtol=0, atol=1e-9)
    model.set_timesteps(1)
    assert not torch.allclose(out(model, **inputs), expected)


@every
def test_events_equal_the_folded_run(family: str, coverage: str, coding: str) -> None:
    model = snn(family, coverage, **CODINGS[coding]).double()
    inputs = inputs_for(model, 2, 5)
    spikes = spikes_of(model, **inputs)
    run = EventExecutor(model)(**inputs)
    assert list(run.spikes) == list(spikes)
    for name, train in run.spikes.items():
        assert torch.equal(train.flatten(), spikes[name].flatten().to(torch.int8)), name
        assert train.abs().sum() > 0
    torch.testing.assert_close(run.output[0], out(model, **inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert_token", "roberta_mlm", "distilbert_mlm", "modernbert_mlm"])
def test_padding_changes_no_real_token(family: str, side: str) -> None:
    model = snn(family).double()
    ids, width = tokens(1, 5), 3
    alone = out(model, input_ids=ids)
    ids, mask = torch.cat([ids, torch.full((1, width), 2)], 1), (torch.arange(8) < 5).long()[None]
    if side == "left":
        if family.startswith("roberta"):
            pytest.skip(
                "RoBERTa counts its positions from the padding itself; left padding equals none by construction"
            )
        positions = torch.cat([torch.zeros(1, width, dtype=torch.long), torch.arange(5)[None]], 1)
        ids, mask = ids.roll(width, 1), mask.roll(width, 1)
        padded = out(model, input_ids=ids, attention_mask=mask, position_ids=positions)[:, width:]
    else:
        padded = out(model, input_ids=ids, attention_mask=mask)[:, :5]
    torch.testing.assert_close(padded, alone)


@encoders
def test_rows_of_a_batch_do_not_meet_and_spikes_are_counted(family: str) -> None:
    model = snn(family).double()
    inputs = inputs_for(model)
    with counting(model) as spikes:
        together = out(model, **inputs)
    assert set(spikes.sites) == set(sites_of(model))
    assert 0 < spikes.per_neuron < 4
    for row in range(3):
        alone = out(model, **{name: value[row : row + 1] for name, value in inputs.items()})
        torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize("family", ["bert_mlm", "bert_sequence", "modernbert_mlm", "vit_image"])
def test_stage_2_calibrates(family: str) -> None:
    model = snn(family, timesteps=2, levels=3)
    inputs = inputs_for(model, 16, 9)  # of four sentences the guard may keep nothing
    with as_qcfs(model):
        target = out(model, **inputs)
    before = (out(model, **inputs) - target).square().mean()
    fas.calibrate(model, [inputs], CalibrationOptions(align_steps=2, global_steps=2))
    assert (out(model, **inputs) - target).square().mean() < before


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_both_towers_of_a_contrastive_model_spike(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = {"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = plain | {
        "vocab_size": 97,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    towers = {"text_config": text, "vision_config": plain | {"image_size": 12, "patch_size": 4}}
    ann = CLIPModel(CLIPConfig(**towers)) if family == "clip" else SiglipModel(SiglipConfig(**towers))
    inputs = {"input_ids": tokens(3, 7), "pixel_values": torch.randn(2, 3, 12, 12)}
    model = fas.convert(fas.prepare(ann.eval(), fas.SpikingConfig(levels=4), [inputs]))
    assert len(find_segments(model)) == 2
    assert len(sites_of(model)) == {"clip": 16, "siglip": 19}[family]
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    assert logits.shape == (2, 3)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits_per_image, logits)


def test_padding_is_not_counted_and_a_pooler_is_one_token_a_sequence() -> None:
    model = snn("bert_sequence")
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with counting(model) as spikes:
        out(model, input_ids=tokens(2, 5), attention_mask=mask)
    neurons = {name.rsplit(".", 1)[-1]: count.neurons for name, count in spikes.sites.items()}
    assert neurons["pooler_input"] == 2 * 32
    assert neurons["attention_input"] == 8 * 32
