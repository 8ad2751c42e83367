"""Layers of a model that lie in no segment: parts whose family FAS does not know. They stay analog, and count as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from fas.models.find import Segment
from fas.notes import warn


@dataclass(frozen=True)
class Stack:
    """Layers of one kind, one after the other."""

    name: str
    layers: int
    block: str
    """Class of a layer."""
    macs: int
    """Multiply–accumulates of their linear layers for a token."""

    def __str__(self) -> str:
        return f"{self.name} ({self.layers} {self.block})"


def linear_macs(module: nn.Module) -> int:
    """Multiply–accumulates of a linear layer for a token; 0 of any other module."""
    return module.weight.numel() if isinstance(module, nn.Linear | Conv1D) else 0


def unknown_stacks(model: nn.Module, segments: Sequence[Segment]) -> list[Stack]:
    """The outermost lists of layers of ``model`` that are in none of ``segments`` and hold none of them."""
    inside = {id(module) for segment in segments for module in segment.module.modules()}
    found: list[Stack] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{stack.name}.") for stack in found):
            continue
        parts = list(module.modules())
        macs = sum(map(linear_macs, parts))
        if macs and not any(id(part) in inside for part in parts) and next(module[0].children(), None) is not None:
            found.append(Stack(name, len(module), type(module[0]).__name__, macs))
    return found


def note_unknown(model: nn.Module, segments: Sequence[Segment]) -> None:
    """Warn, at the user's line, of layers that no family knows."""
    if stacks := unknown_stacks(model, segments):
        warn(
            f"only a part of {type(model).__name__} becomes spikes: no family knows the layers of "
            f"{', '.join(map(str, stacks))}, which stay analog"
        )
