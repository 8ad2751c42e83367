"""Parts of a model that lie elsewhere (accelerate): right logits, or one sentence before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny
import torch
from kept import copy_of
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import fas
from fas.config import SpikingConfig
from fas.errors import FasError
from fas.runtime.control import sites_of
from fas.runtime.events import EventExecutor

CPU = torch.device("cpu")
MAP = {
    "model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "disk",
    "model.rotary_emb": "cpu", "lm_head": "cpu",
}  # fmt: skip


def calibrated(**settings: Any) -> PreTrainedModel:
    def build() -> PreTrainedModel:
        model = tiny.snn("llama", **settings)
        fas.calibrate(model, [tiny.inputs_for(model, 2, 9)])
        return model

    return copy_of(("calibrated", sorted(settings.items())), build)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "ann": lambda: tiny.ann("llama"),
    "qcfs": lambda: tiny.qcfs_model("llama"),
    "qcfs_centred": lambda: tiny.qcfs_model("llama", center=True),
    "snn": lambda: tiny.snn("llama"),
    "calibrated": calibrated,
    "rate": lambda: calibrated(coding="rate"),
    "full": lambda: tiny.snn("llama", "full"),
    "prefix": lambda: tiny.snn("llama", prefix=(5, 6)),
}


def cpu_offload(model: PreTrainedModel, folder: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device=CPU)


def cpu_offload_buffers(model: PreTrainedModel, folder: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device=CPU, offload_buffers=True)


def disk_offload(model: PreTrainedModel, folder: Path) -> Any:
    return accelerate.disk_offload(model, str(folder), execution_device=CPU, offload_buffers=True)


def mapped(model: PreTrainedModel, folder: Path) -> Any:
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, device_map=MAP, offload_folder=folder / "off")


def logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("offload", [cpu_offload, cpu_offload_buffers, disk_offload, mapped])
def test_offloaded_parts_change_no_logits(offload: Any, name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    wanted = logits(model, input_ids=tiny.tokens())
    written = model.generate(tiny.tokens(1, 4), max_new_tokens=4, do_sample=False)
    model = offload(model, tmp_path)
    assert any(value.is_meta for value in model.parameters())
    assert torch.equal(logits(model, input_ids=tiny.tokens()), wanted)
    assert torch.equal(model.generate(tiny.tokens(1, 4), max_new_tokens=4, do_sample=False), written)
    if name != "ann":
        with fas.accelerated(model):
            assert torch.allclose(logits(model, input_ids=tiny.tokens()), wanted, atol=1e-5)


def test_what_reads_or_changes_weights_refuses_and_leaves_an_offloaded_model_as_it_was(tmp_path: Path) -> None:
    ann, snn = mapped(tiny.ann("llama"), tmp_path / "ann"), mapped(tiny.snn("llama"), tmp_path / "snn")
    batch = tiny.inputs_for(tiny.ann("llama"), 2, 9)
    config, other = SpikingConfig(levels=8, timesteps=4), tiny.ann("llama")
    verbs = {
        "fas.prepare": lambda: fas.prepare(ann, config, [batch]),
        "fas.train_blocks": lambda: fas.train_blocks(ann, other, config, [batch]),
        "fas.calibrate": lambda: fas.calibrate(snn, [batch]),
        "fas.diagnose": lambda: fas.diagnose(snn, [batch]),
        "fas.ledger": lambda: fas.ledger(snn, batch),
        "the event executor": lambda: EventExecutor(snn),
    }
    before = [logits(model, input_ids=tiny.tokens()) for model in (ann, snn)]
    for name, verb in verbs.items():
        with pytest.raises(
            FasError, match=f"^{name} needs all weights .* first model.layers.0.*; load the model without"
        ):
            verb()
    assert not sites_of(ann)
    assert not any(site.neurons for site in sites_of(snn).values())
    for model, wanted in zip((ann, snn), before, strict=True):
        assert torch.equal(logits(model, input_ids=tiny.tokens()), wanted)


def test_invalid_neurons_on_a_disk_are_refused_as_those_in_memory_are(tmp_path: Path) -> None:
    model = calibrated()
    site = next(iter(sites_of(model).values()))
    site.parameters_for(site.clock.config).v_init.data[0] = float("nan")
    with pytest.raises(FasError, match=r"must be finite.*v_init"):
        mapped(model, tmp_path)


def test_a_site_on_another_device_is_torchs_own_error() -> None:
    for make in (tiny.qcfs_model, tiny.snn):
        model = make("llama")
        next(iter(sites_of(model).values())).to("meta")
        with pytest.raises(RuntimeError, match=r"expected device|same device"):
            logits(model, input_ids=tiny.tokens())
