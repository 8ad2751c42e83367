"""Fine calibration: thresholds and initial potentials of every channel, by gradient through simulated time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fas.neurons import NeuronParameters
from fas.progress import Progress

THRESHOLD_LR = 5e-3
POTENTIAL_LR = 5e-3


def optimizer_for(parameters: Sequence[NeuronParameters]) -> torch.optim.Optimizer:
    """Adam on log θ (relative steps) and v₀ (in units of θ or of one quantization step)."""
    return torch.optim.Adam(
        [
            {"params": [p.log_threshold for p in parameters], "lr": THRESHOLD_LR},
            {"params": [p.v_init for p in parameters], "lr": POTENTIAL_LR},
        ],
        betas=(0.9, 0.98),
    )


@contextmanager
def only_trainable(model: nn.Module, parameters: Sequence[NeuronParameters]) -> Iterator[None]:
    """Inside, nothing but ``parameters`` has gradients: the weights stay frozen (the paper's Stage 2)."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.requires_grad_(False)
        for entry in parameters:
            entry.requires_grad_(True)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
            parameter.grad = None


def descend(
    parameters: Sequence[NeuronParameters],
    loss_of: Callable[[int], Tensor],
    batches: int,
    steps: int,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """Minimise the mean of ``loss_of(batch)`` and keep the better of start and end; returns (before, after).

    What counts is the loss over all batches, so a calibration that does not help changes nothing.
    """

    def total() -> float:
        with torch.no_grad():
            return sum(float(loss_of(batch)) for batch in range(batches)) / batches

    start = [(p, p.log_threshold.detach().clone(), p.v_init.detach().clone()) for p in parameters]
    before = total()
    optimizer = optimizer_for(parameters)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for step in range(steps):
        loss = loss_of(step % batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        for entry in parameters:
            entry.v_init.data.clamp_(0.0, 1.0)
        if progress is not None:
            progress.advance(1, f"loss {float(loss.detach()):.5f}")
    after = total()
    if not after < before:
        for entry, log_threshold, v_init in start:
            entry.log_threshold.data.copy_(log_threshold)
            entry.v_init.data.copy_(v_init)
        return before, before
    return before, after
