"""Models of which no family knows a part: that it stays analog is counted, named and said."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import fas
from fas.cli import main
from fas.models import find_segments, unknown_stacks

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def partly() -> PaliGemmaForConditionalGeneration:
    """Its vision tower is known (SigLIP), its decoder (Gemma 1) is not."""
    torch.manual_seed(0)
    vision = SHAPE | {"model_type": "siglip_vision_model", "image_size": 8, "patch_size": 4, "projection_dim": 32}
    text = SHAPE | {
        "model_type": "gemma",
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 90,
        "num_hidden_layers": 3,
    }
    config = PaliGemmaConfig(vision_config=vision, text_config=text, image_token_index=89, projection_dim=32)
    return PaliGemmaForConditionalGeneration(config).eval()


def inputs(batch: int = 2) -> dict[str, Any]:
    ids = torch.cat([torch.full((batch, 4), 89), torch.arange(1, 6).expand(batch, 5)], dim=1)
    images = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "pixel_values": images, "attention_mask": torch.ones_like(ids)}


def test_layers_of_no_family_are_in_the_denominator_and_named(
    partly: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partly.save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (stack,) = found["unknown"]
    assert (stack["layers"], stack["block"]) == (3, "GemmaDecoderLayer")
    weights = sum(p.numel() for p in partly.model.language_model.layers.parameters() if p.ndim == 2)
    assert stack["macs"] == found["macs_per_token"]["unknown"] == weights
    assert found["outside"]["output head"] == 1
    assert found["outside"]["Linear (not covered)"] == 3 * 7 + 1  # with the projector
    assert "Linear (not covered)" not in found["analog"]
    assert main(["inspect", str(tmp_path)]) == 0
    text, macs = capsys.readouterr().out, found["macs_per_token"]
    assert f"Spikes drive {macs['covered'] / (macs['blocks'] + weights):.1%} of the multiply" in text
    assert "lie in model.language_model.layers (3 GemmaDecoderLayer), which no family knows" in text


def test_preparing_says_so_at_the_users_line(partly: Any) -> None:
    with pytest.warns(UserWarning, match=r"only a part of PaliGemma.*\.layers \(3 GemmaDecoderLayer\)") as found:
        fas.prepare(partly, fas.SpikingConfig(), [inputs()])
    assert [one.filename for one in found] == [__file__]


def test_known_models_have_no_such_layers() -> None:
    bert = BertForSequenceClassification(BertConfig(**SHAPE, vocab_size=50))
    assert unknown_stacks(bert, find_segments(bert)) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fas.prepare(bert.eval(), fas.SpikingConfig(), [{"input_ids": torch.arange(1, 9).view(1, 8)}])


def test_memory_is_that_of_the_models_own_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier has labels and no key/value cache, and images have as many tokens as patches."""
    BertForSequenceClassification(BertConfig(**SHAPE, vocab_size=50)).save_pretrained(tmp_path / "bert")
    ViTForImageClassification(ViTConfig(**SHAPE, image_size=16, patch_size=8)).save_pretrained(tmp_path / "vit")
    found = {}
    for name in ("bert", "vit"):
        assert main(["inspect", str(tmp_path / name), "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
        assert main(["inspect", str(tmp_path / name)]) == 0
        found[name]["text"] = capsys.readouterr().out
        assert found[name]["memory"]["logits"] == 4 * 8 * 2
        assert found[name]["memory"]["exact_cache"] == 0
        assert "cache" not in found[name]["text"]
    assert found["vit"]["workload"]["length"] == 5
    assert "8 images of 5 tokens" in found["vit"]["text"]
    assert "8 sequences of 256 tokens" in found["bert"]["text"]


def test_a_converted_folder_has_one_coverage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert = BertForSequenceClassification(BertConfig(**SHAPE, vocab_size=50)).eval()
    ids = torch.arange(1, 9).view(1, 8)
    fas.convert(fas.prepare(bert, fas.SpikingConfig(), [{"input_ids": ids}])).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path), "--coverage", "full"]) == 2
    assert "was converted with coverage linear, so it has no sites of coverage full" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--coverage", "linear"]) == 0
    assert "sites spike, with coverage linear" in capsys.readouterr().out
