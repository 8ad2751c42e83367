"""Weights that a saved folder lacks, or has too many of: refused by name, in Python as by the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from fas.cli import main
from fas.errors import CheckpointError
from fas.pipeline.load import load_ann
from fas.runtime.control import sites_of


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


def in_parts(folder: Path) -> Path:
    tiny.snn("llama").save_pretrained(folder, max_shard_size="20KB")
    return folder / "model.safetensors.index.json"


@pytest.mark.parametrize("damage", ["gone", "elsewhere"])
def test_an_index_that_has_lost_a_weight_is_seen_by_all_doors(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = in_parts(tmp_path)
    told = json.loads(index.read_text())
    mapped = told["weight_map"]
    if damage == "gone":
        del mapped["lm_head.weight"]  # the only one in its file
    else:
        mapped["lm_head.weight"] = mapped["model.norm.weight"]
    index.write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"lacks the tensor lm_head\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert main(["verify", str(tmp_path)]) == 1
    assert "lm_head.weight" in capsys.readouterr().out


def test_weights_in_another_form_are_refused(tmp_path: Path) -> None:
    folder = of_old(tmp_path, "gpt2", lambda tensors: None)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin holds weights in another form than safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_loaded_model_may_be_cast_as_a_new_one(tmp_path: Path) -> None:
    tiny.snn("gpt2").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    before = model(input_ids=tiny.tokens()).logits
    assert model.half().dtype == torch.float16
    assert {value.dtype for site in sites_of(model).values() for value in site.state_dict().values()} == {torch.float32}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).float()
    assert torch.equal(model(input_ids=tiny.tokens()).logits, before)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_names_of_a_wrapper_are_called_so(wrapper: str, tmp_path: Path) -> None:
    folders.save_ann(tmp_path, "llama")
    tensors = {f"{wrapper}{name}": value for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"a wrapper has saved under its own names .* take {wrapper} off"):
        load_ann(str(tmp_path), "cpu")


def test_a_configuration_without_neurons_is_refused_for_a_converted_folder(tmp_path: Path) -> None:
    tiny.snn("llama").save_pretrained(tmp_path / "snn")
    ann = tiny.ann("llama")
    for cls in (AutoModelForCausalLM, AutoModel, type(ann)):
        with pytest.raises(
            CheckpointError, match=r"given for it has no quantization_config: its neurons would be left out"
        ):
            cls.from_pretrained(tmp_path / "snn", config=ann.config)
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "snn")
    for config in (own.config, AutoConfig.from_pretrained(tmp_path / "snn"), str(tmp_path / "snn" / "config.json")):
        again = type(ann).from_pretrained(tmp_path / "snn", config=config)
        assert torch.equal(again(tiny.tokens()).logits, own(tiny.tokens()).logits)
    ann.save_pretrained(tmp_path / "ann")
    AutoModelForCausalLM.from_pretrained(tmp_path / "ann", config=ann.config)
