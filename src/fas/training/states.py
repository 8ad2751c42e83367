"""Distillation of hidden states: what each block of the student says, beside what that block of the teacher says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fas import world
from fas.models import find_segments


@contextmanager
def block_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the list holds the hidden states ``[B, S, D]`` of the blocks that have run, in order."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: object) -> None:
        states = output[0] if isinstance(output, tuple) else output
        assert isinstance(states, Tensor)
        found.append(states)

    handles = [
        module.register_forward_hook(keep)
        for segment in find_segments(model)
        for module in segment.module.modules()
        if type(module).__name__.removeprefix("FSDP") == segment.family.block  # sharded, its class has another name
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def states_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Mean over blocks of ‖s − t‖² / ‖t‖² over the tokens that ``mask`` ``[B, S]`` shows (None: all), of all
    processes together; dimensionless."""
    errors, powers = [], []
    for given, wanted in zip(student, teacher, strict=True):
        weight = 1.0 if mask is None or mask.shape != given.shape[:2] else mask[..., None].to(given.dtype)
        errors.append(((given - wanted).square() * weight).sum())
        powers.append((wanted.square() * weight).sum())
    # the Trainer takes the mean over processes, which is to be all errors over all powers
    power = world.summed(torch.stack(powers)) / world.size()
    return (torch.stack(errors) / power.clamp(min=torch.finfo(power.dtype).tiny)).mean()
