"""Weights that a saved folder lacks, or has too many of: refused by name, in Python as by the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from fas.errors import CheckpointError


def of_old(folder: Path, family: str, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """A folder as FAS 0.1 saved it, without manifest, after ``change`` of its tensors."""
    tiny.snn(family).save_pretrained(folder)
    (folder / "fas_manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["digest"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gpt2", "transformer.h.1.mlp.c_fc.bias"),
        ("gpt2", "transformer.wte.weight"),
        ("llama", "model.layers.0.self_attn.q_proj.weight"),
        ("llama", "lm_head.weight"),
        ("llama", "model.norm.weight"),
    ],
)
@pytest.mark.parametrize("cls", [AutoModelForCausalLM, AutoModel])
def test_missing_weights_are_refused_by_name(family: str, name: str, cls: Any, tmp_path: Path) -> None:
    folder = of_old(tmp_path, family, lambda tensors: tensors.pop(name))
    if cls is AutoModel and name == "lm_head.weight":
        cls.from_pretrained(folder)  # which has none
        return
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, first .*" + name.split(".", 1)[1].replace(".", r"\.")):
        cls.from_pretrained(folder)


def test_a_new_head_is_no_damage(tmp_path: Path) -> None:
    folder = of_old(tmp_path, "gpt2", lambda tensors: None)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert model.score.weight.shape[0] == 3
    assert "_adjust_missing_and_unexpected_keys" not in model.__dict__


def test_a_pooler_that_was_not_saved_is_no_damage(tmp_path: Path) -> None:
    tiny.snn("bert_mlm").save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).pooler is not None


def test_weights_without_a_place_are_refused_by_name(tmp_path: Path) -> None:
    folder = of_old(tmp_path, "llama", lambda tensors: tensors.update({"model.norm.bias": torch.ones(32)}))
    with pytest.raises(CheckpointError, match=r"no place for, first model\.norm\.bias"):
        AutoModelForCausalLM.from_pretrained(folder)
