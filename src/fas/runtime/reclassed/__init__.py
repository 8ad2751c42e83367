"""Attention modules that do not let transformers' attention interface compute their products: a subclass of each does.

The modules keep their weights, names and signatures; only their class changes, to one that a pickle finds again. Until an
implementation is chosen they compute as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from torch import nn
from transformers import PreTrainedModel

CLASSES = {
    "BlipAttention": "fas.runtime.reclassed.blip",
    "BlipTextSelfAttention": "fas.runtime.reclassed.blip",
    "GitSelfAttention": "fas.runtime.reclassed.git",
    "VisionAttention": "fas.runtime.reclassed.qwen2_vl",
}
"""By class: the file with its subclass, whose name is the class's behind ``Spiking``."""


def reclass(model: nn.Module) -> None:
    """Give the attention modules of ``model`` that need it their subclass."""
    for module in model.modules():
        name = type(module).__name__
        if name in CLASSES:
            module.__class__ = getattr(import_module(CLASSES[name]), f"Spiking{name}")


def choose_attention(model: nn.Module, name: str, everywhere: bool = True) -> None:
    """Make all attention modules of ``model`` use the implementation ``name`` of transformers' interface.

    Not ``everywhere``: only those that by themselves would ask no interface at all, because tokens that see nothing (padding)
    get something else there than in every implementation.
    """
    for module in model.modules():
        if hasattr(type(module), "attention_name") and (everywhere or not getattr(type(module), "asks", True)):
            module.attention_name = name  # type: ignore[assignment]
        elif isinstance(module, PreTrainedModel) and (
            any(not getattr(type(part), "asks", True) for part in module.modules())
            or (everywhere and module._can_set_attn_implementation())
        ):
            module.config._attn_implementation_internal = name


@contextmanager
def attention_as(model: nn.Module, name: str) -> Iterator[None]:
    """All attention modules of ``model`` by the implementation ``name``, for the length of the context."""
    classes = {module: type(module) for module in model.modules() if type(module).__name__ in CLASSES}
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = {part: part.config._attn_implementation for part in parts}
    try:
        reclass(model)
        choose_attention(model, name)
        yield
    finally:
        for module, own in classes.items():
            module.__class__ = own
            vars(module).pop("attention_name", None)
        for part, implementation in before.items():
            part.config._attn_implementation_internal = implementation
