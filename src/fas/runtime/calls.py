"""Calls of a converted model: from the outermost forward, or `generate`, to its end nobody changes the model.

Hooks say when a call begins and ends; small picklable objects, as all of FAS's.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fas.neurons import Clock
from fas.offloading import is_offloaded
from fas.runtime.hooks import Hook


class EnterHook(Hook):
    """Pre-hook of a model or a segment, in front of all others. accelerate's offloading takes one call at a time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():  # which keeps what it was compiled for
            self.clock.enter(module, sys._getframe(1), alone=is_offloaded(module))


class LeaveHook(Hook):
    """Hook of a model or a segment, behind all others, also after an exception."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.clock.leave(module)


class Generate:
    """``model.generate`` as one call, so that all tokens are of one time."""

    def __init__(self, model: Any, clock: Clock) -> None:
        self.model, self.clock = model, clock

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.model).generate.__get__(self.model))

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return type(self.model).generate.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.enter(self, sys._getframe(), alone=is_offloaded(self.model))
        try:
            return type(self.model).generate(self.model, *args, **kwargs)
        finally:
            self.clock.leave(self)


def mark_calls(model: PreTrainedModel, segments: list[nn.Module], clock: Clock) -> None:
    """Let ``clock`` know of the calls of ``model`` and of its ``segments``, which may be called by themselves."""
    for module in dict.fromkeys([*segments, model]):
        enter, leave = EnterHook(clock), LeaveHook(clock)
        enter.handle = module.register_forward_pre_hook(enter, prepend=True)
        leave.handle = module.register_forward_hook(leave, always_call=True)
    if hasattr(type(model), "generate"):
        model.generate = Generate(model, clock)  # type: ignore[assignment]
