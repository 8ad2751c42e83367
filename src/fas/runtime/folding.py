"""Folds time into the batch at the borders of a segment: B rows go in, T·B rows run, B rows come out.

Two hooks per segment, small picklable objects; the model's class, its forward and its signature stay untouched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from fas.errors import FasError
from fas.models.find import Segment
from fas.neurons import Clock
from fas.runtime import attention
from fas.runtime.cache import prepare_cache
from fas.runtime.hooks import Hook


class FoldHook(Hook):
    """Forward pre-hook of a segment: repeats every tensor argument over time, time-major."""

    def __init__(self, segment: Segment, clock: Clock, attends: bool) -> None:
        self.clock, self.family, self.attends = clock, segment.family, attends
        parameters = inspect.signature(type(segment.module).forward).parameters
        self.names = [name for name in parameters if name != "self"]
        # what can encode and decode says so on each call
        self.decodes: bool = parameters["is_decoder"].default if "is_decoder" in parameters else True

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        now = self.clock.now
        if now.handing is not None:
            return None
        self._check_attention(module)
        if not self.clock.folds:
            return None
        kwargs, batch = self.rows(module, args, kwargs)
        _refuse_recording(module, kwargs)
        given = kwargs
        kwargs = {name: self._fold(module, name, value, batch) for name, value in kwargs.items()}
        if "past_key_values" in self.names and kwargs.get("is_decoder", self.decodes):
            prepare_cache(module, kwargs, self.clock)
        if self.clock.early is not None:
            self.clock.early.begin(module, self.family, given, batch, kwargs.get("past_key_values"))
        now.still = now.depth == 0
        now.depth += 1
        return (), kwargs

    def rows(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """All arguments by name, and the number B of their rows; raises `FasError` where none says it."""
        kwargs = dict(zip(self.names, args, strict=False)) | kwargs
        anchors = self.family.anchors
        batch = next((kwargs[n].shape[0] for n in anchors if torch.is_tensor(kwargs.get(n))), None)
        if batch is None:
            raise FasError(f"{type(module).__name__} got neither of {', '.join(anchors)}; time is folded along one")
        return kwargs, batch

    def _check_attention(self, module: nn.Module) -> None:
        chosen = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if self.attends and chosen != attention.NAME:
            raise FasError(
                f"{type(module).__name__} was switched to the attention implementation {chosen!r}, in which query, key, value "
                f"and probabilities do not spike; call set_attn_implementation({attention.NAME!r})"
            )

    def _fold(self, module: nn.Module, name: str, value: Any, batch: int) -> Any:
        if isinstance(value, dict):  # masks by layer type
            return {key: self._fold(module, name, entry, batch) for key, entry in value.items()}
        if not torch.is_tensor(value) or value.ndim == 0 or name == "cache_position":
            return value
        if name not in self.family.foldable:
            raise FasError(
                f"{type(module).__name__} got the tensor argument {name!r}, which FAS cannot fold over time; "
                f"arguments that it folds are {', '.join(sorted(self.family.foldable))}"
            )
        axis = self.family.batch_axis.get(name, 0)
        if name in self.family.packed:
            batch = value.shape[axis]
        if value.shape[axis] == 1 and batch != 1:
            return value  # broadcasts over the rows
        if value.shape[axis] != batch:
            raise FasError(f"{name} has {value.shape[axis]} rows where the batch has {batch}")
        return torch.cat([value] * self.clock.config.timesteps, axis)


def _refuse_recording(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """Around a segment that is no model of its own, transformers records the layers' T·B rows: no readout reaches them."""
    for name in ("output_hidden_states", "output_attentions"):
        asked = kwargs.get(name, getattr(getattr(module, "config", None), name, False))
        if asked and not isinstance(module, PreTrainedModel):
            raise FasError(
                f"{name} would record the layers of {type(module).__name__} in folded time, a row for every timestep; "
                f"call the model without {name}, or as QCFS model"
            )


class ReadoutHook(Hook):
    """Forward hook of a segment: gives B rows back (the last timestep, or the mean of ``step`` rows)."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        now = self.clock.now
        if torch.is_grad_enabled() and output is not None and not torch.compiler.is_compiling():
            _expect(output, self.clock)
        if now.handing is not None or not self.clock.folds:
            return None
        now.depth, now.still = max(0, now.depth - 1), False
        early = self.clock.early
        pick = partial(readout, clock=self.clock) if early is None else early.end(module, output)
        return read(output, pick)


def _expect(output: Any, clock: Clock) -> None:
    """Let the backward pass of ``output`` know in which time it was computed."""
    entries = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else (output,)
    for entry in entries:
        if torch.is_tensor(entry) and entry.requires_grad:
            entry.register_hook(clock.expect())


def read(output: Any, pick: Callable[[Tensor], Tensor]) -> Any:
    """``output`` of a segment with ``pick`` applied to all of its tensors (a `ModelOutput` is changed in place)."""
    if isinstance(output, Cache):
        return output
    if torch.is_tensor(output):
        return output if output.ndim == 0 else pick(output)
    if isinstance(output, ModelOutput):
        for key in list(output.keys()):
            output[key] = read(output[key], pick)
        return output
    if isinstance(output, tuple | list):
        return type(output)(read(entry, pick) for entry in output)
    return output


def readout(rows: Tensor, clock: Clock) -> Tensor:
    """``[T·B, …]`` to ``[B, …]``: the last timestep, or the mean of ``step`` rows; without folded time, ``rows`` itself."""
    if not clock.folds:
        return rows
    return said(over_time(rows, clock), clock)


def over_time(rows: Tensor, clock: Clock) -> Tensor:
    """Rows ``[T·B, …]`` as ``[T, B, …]``."""
    timesteps = clock.config.timesteps
    return rows.view(timesteps, rows.shape[0] // timesteps, *rows.shape[1:])


def said(split: Tensor, clock: Clock) -> Tensor:
    """What the network says after the timesteps in ``split`` ``[t, B, …]``: the last row, or the mean of ``step`` rows."""
    averaged = clock.config.coding == "rate" and clock.config.rows == "step"
    return split.mean(0) if averaged else split[-1]


def fold_segment(segment: Segment, clock: Clock, attends: bool = False) -> None:
    """Install both hooks; ``attends``: operands of attention spike, too.

    The readout also runs after an exception, so that the depth cannot leak.
    """
    fold, readout = FoldHook(segment, clock, attends), ReadoutHook(clock)
    fold.handle = segment.module.register_forward_pre_hook(fold, with_kwargs=True, prepend=True)
    readout.handle = segment.module.register_forward_hook(readout, with_kwargs=True, always_call=True)


def silence_dropout(module: nn.Module) -> None:
    """Set every dropout to 0: folded rows differ only by time, so all must meet the same network (design review #7)."""
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(child, name, None), float):
                setattr(child, name, 0.0)
