"""Stage 1 of one block: all its parameters, trained to give the ANN's output on what the quantized blocks before it give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from fas.errors import ConfigError, FasError
from fas.given.kinds import require_kinds
from fas.neurons import Clock
from fas.progress import Progress
from fas.runtime.finite import is_finite
from fas.runtime.replay import Stream, run_block
from fas.training.optimizer import adamw
from fas.training.states import states_loss

LARGEST_GRADIENT = 1.0
"""Norm to which gradients are cut, as in Stage 1 of the whole model."""


@dataclass(frozen=True)
class BlockOptions:
    """How Stage 1 trains a block at a time. Raises `ConfigError` for values that make no sense."""

    steps: int = 600
    """Gradient steps of each block, a batch each; 0: scales are fitted, nothing is trained."""
    lr: float = 2e-4
    scale_lr: float = 2e-3
    """Learning rate of log λ: Adam moves a scale by about this share of itself per step."""
    weight_decay: float = 0.0
    warmup: float = 0.05
    """Share of the steps in which the learning rates rise; then they fall as a cosine to 0."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_kinds(self)
        for name in ("steps", "lr", "scale_lr", "weight_decay", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} is not valid: it must be at least 0")
        if self.warmup > 1:
            raise ConfigError(f"warmup={self.warmup} is not valid: it is a share of the steps, at most 1")


@dataclass(frozen=True)
class BlockReport:
    """Squared error of one block's output relative to the ANN's, on the batches that its scales were fitted on: with fitted
    scales, and after training."""

    name: str
    before: float
    after: float


def train_block(
    block: nn.Module,
    index: int,
    inputs: Sequence[Stream],
    targets: Sequence[Stream],
    masks: Sequence[Tensor | None],
    clock: Clock,
    options: BlockOptions,
    progress: Progress,
) -> None:
    """Train all parameters of the QCFS ``block`` that have gradients, in place.

    Args:
        block: A block of the QCFS model.
        index: Its number.
        inputs: The hidden states that the quantized blocks before it give, a stream a batch.
        targets: What the ANN's block gives on the ANN's own hidden states.
        masks: Of each batch ``[B, S]`` which tokens count; None: all.
        clock: The clock of the QCFS model.
        options: How it is trained.
        progress: Who is told of each step.
    """
    optimizer = adamw(block, options)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(options.warmup * options.steps), options.steps)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for number in islice(_drawn(len(inputs), options.seed, index), options.steps):
        loss = error_of(run_block(block, index, inputs[number], clock), targets[number], masks[number])
        if not is_finite(loss):
            raise FasError(
                f"training of block {index} diverged: its error is {float(loss.detach())}; choose a smaller learning rate"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        progress.advance(1, f"block {index} error {float(loss.detach()):.5f}")
    for parameter in trained:
        parameter.grad = None


def error_of(rows: Tensor, target: Stream, mask: Tensor | None) -> Tensor:
    """Squared error of ``rows`` ``[B, S, D]`` relative to the present hidden states of ``target``."""
    return states_loss([rows], [cast(Tensor, target.hidden)], mask)


def masks_of(batches: Sequence[Mapping[str, Any]]) -> list[Tensor | None]:
    """Which tokens of each batch are no padding; None: all."""
    return [batch.get("attention_mask") for batch in batches]


def _drawn(count: int, seed: int, index: int) -> Iterator[int]:
    """Numbers of batches without end: all of them in a random order, then in another, of each block's own."""
    generator = torch.Generator().manual_seed((seed << 16) + index)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
