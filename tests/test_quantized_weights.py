"""Weights of a converted model in int8, by libraries that exchange its linear layers or their weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import fas
from fas.errors import FasError, UnsupportedModelError
from fas.models.linear import effective_weight
from fas.runtime.events import EventExecutor
from fas.runtime.spikes import counting

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = {"input_ids": tiny.tokens()}


def by_quanto(model: PreTrainedModel, frozen: bool = True) -> None:
    quanto = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    quanto.quantize(model, weights=quanto.qint8)
    if frozen:
        quanto.freeze(model)


def by_quanto_later(model: PreTrainedModel) -> None:
    by_quanto(model, frozen=False)


def by_torchao(model: PreTrainedModel) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())


def by_torch(model: PreTrainedModel) -> None:
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


class Int8Linear(nn.Module):
    """A layer of nobody's library, with whole numbers for weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("step", layer.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.register_buffer("codes", (layer.weight.detach() / self.step).round().to(torch.int8))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.codes * self.step, self.bias)


def by_hand(model: PreTrainedModel) -> None:
    for module in list(model.model.layers.modules()):
        for name, layer in list(module._modules.items()):
            if isinstance(layer, nn.Linear):
                setattr(module, name, Int8Linear(layer))


WEIGHTS = {"quanto": by_quanto, "quanto, not frozen": by_quanto_later, "torchao": by_torchao, "by hand": by_hand}


def rounded(model: PreTrainedModel, quantized: PreTrainedModel) -> PreTrainedModel:
    """``model`` with the weights that ``quantized`` has in effect, as ordinary ones."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            its = quantized.get_submodule(name)
            module.weight.data.copy_(effective_weight(its, module.in_features).T)
    return model


def run(model: Any) -> tuple[Tensor, float]:
    with torch.no_grad(), counting(model) as count:
        return model(**IDS, use_cache=False).logits, count.per_neuron


@pytest.mark.parametrize("stage", ["snn", "qcfs"])
@pytest.mark.parametrize("coverage", ["linear", "full"])
@pytest.mark.parametrize("how", WEIGHTS)
def test_int8_weights_are_given_spikes(how: str, coverage: str, stage: str) -> None:
    """As the network with the same weights in floating point; a few neurons at a threshold may tell them apart."""
    model = tiny.snn("llama", coverage, levels=8) if stage == "snn" else tiny.qcfs_model("llama", coverage, levels=8)
    before, _ = run(model)
    quantized = copy.deepcopy(model)
    WEIGHTS[how](quantized)
    out, fired = run(quantized)
    expected, theirs = run(rounded(model, quantized))
    assert fired == pytest.approx(theirs, rel=0.02)
    assert stage == "qcfs" or fired > 0.5
    close = (out - expected).abs().median()
    assert close < 0.05 * (out - before).abs().median(), "what differs is the rounding of weights"


@pytest.mark.parametrize("how", ["quanto", "torchao", "by hand"])
def test_what_needs_weights_in_floating_point_says_so(how: str) -> None:
    model = tiny.snn("llama")
    WEIGHTS[how](model)
    expected, _ = run(model)
    with pytest.raises(FasError, match="folds thresholds into weights"):
        EventExecutor(model)
    if how == "by hand":  # whose products are ordinary ones
        assert fas.ledger(model, IDS).forward.share == fas.ledger(tiny.snn("llama"), IDS).forward.share
    else:
        with pytest.raises(FasError, match="could not be counted"):
            fas.ledger(model, IDS)
    with fas.accelerated(model):
        torch.testing.assert_close(run(model)[0], expected, rtol=1e-3, atol=1e-3)
    fas.calibrate(model, [IDS])
    assert run(model)[1] > 0.5


@pytest.mark.parametrize("how", ["quanto", "quanto, not frozen", "torchao"])
def test_an_ann_in_int8_is_not_converted(how: str) -> None:
    model = tiny.ann("llama")
    WEIGHTS[how](model)
    with pytest.raises(UnsupportedModelError, match=r"q_proj is a .*quantized"):
        fas.prepare(model, fas.SpikingConfig(), [IDS])


def test_torchs_own_dynamic_quantization_keeps_spikes() -> None:
    model = tiny.snn("llama")
    by_torch(model)
    assert run(model)[1] > 0.5


def test_copies_keep_their_own_sites() -> None:

    model = tiny.snn("llama")
    by_hand(model)
    copied = copy.deepcopy(model)
    expected, _ = run(model)
    copied.set_timesteps(8)
    assert torch.equal(run(model)[0], expected)
    assert not torch.equal(run(copied)[0], expected)
