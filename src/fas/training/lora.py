"""Stage 1 by LoRA (Hu et al. 2021, by peft): low-rank adapters on the linear layers, merged into the weights in the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fas.errors import ConfigError, with_extra
from fas.models import find_segments
from fas.neurons import Site
from fas.runtime.folding import follow


@dataclass(frozen=True)
class Lora:
    """W + (alpha/rank)·B·A with A ``[rank, in]`` and B ``[out, rank]``, which starts at 0."""

    rank: int = 16
    alpha: float = 32.0


def require_peft() -> Any:
    """The library; raises `ConfigError` where it is not installed."""
    try:
        import peft
    except ImportError:
        raise ConfigError(f"stage1='lora' needs peft, which is not installed; {with_extra('lora')}") from None
    return peft


@contextmanager
def adapted(model: PreTrainedModel, lora: Lora) -> Iterator[PreTrainedModel]:
    """Inside, adapters of the linear layers of ``model``'s segments are trained instead of its weights; afterwards they are
    merged and the model is as before.

    Scales of sites are trained, too, and so are linear layers that no causal model has: heads and poolers outside of the
    blocks, which may be new. Raises `ConfigError` without peft.
    """
    peft = require_peft()
    before = [(p, p.requires_grad) for p in model.parameters()]
    readers, heads = _linear_layers(model)
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in readers)
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=readers, fan_in_fan_out=transposed
    )
    model.requires_grad_(False)
    tuner = peft.tuners.lora.LoraModel(model, settings, "default")
    follow(model)
    whole = [module.log_scale for module in model.modules() if isinstance(module, Site)]
    whole += [parameter for name in heads for parameter in model.get_submodule(name).parameters()]
    trained = {id(parameter) for parameter, flag in before if flag}
    for parameter in whole:  # scales of groups stay what their functions ask for
        parameter.requires_grad_(id(parameter) in trained)
    try:
        yield model
    finally:
        tuner.merge_and_unload()
        follow(model)
        model.__dict__.pop("peft_config", None)  # some versions leave it
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def _linear_layers(model: PreTrainedModel) -> tuple[list[str], list[str]]:
    """Names of those inside the repeated layers, and of those elsewhere but for a readout of tokens."""
    blocks = {segment.family.block for segment in find_segments(model)}
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    inside = [
        f"{name}.{inner}"
        for name, block in model.named_modules()
        if type(block).__name__ in blocks
        for inner, _ in block.named_modules()
        if f"{name}.{inner}" in linear
    ]
    readout = model.get_output_embeddings()
    return inside, [name for name, module in linear.items() if name not in inside and module is not readout]
