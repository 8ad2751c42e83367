"""Fine calibration: thresholds and initial potentials of every channel, by gradient through simulated time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fas import world
from fas.losses import better
from fas.neurons import NeuronParameters
from fas.progress import Progress
from fas.runtime.replay import no_caches, restore_forward

LAYER_LR = 5e-3
GLOBAL_LR = {"rate": 6e-3, "sigma_delta": 1e-3}
"""Of the last pass: all sites move at once, from where they have already been fitted (docs/log.md, 2026-11-26)."""


def optimizer_for(parameters: Sequence[NeuronParameters], lr: float) -> torch.optim.Optimizer:
    """Adam on log θ (relative steps) and v₀ (in units of θ or of one quantization step)."""
    values = [value for p in parameters for value in (p.log_threshold, p.v_init)]
    return torch.optim.Adam(values, lr=lr, betas=(0.9, 0.98))


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


@contextmanager
def checkpointed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the backward pass computes each of ``blocks`` again instead of keeping what it went through."""

    def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        args, kwargs = no_caches(args, kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    own = [(block, block.__dict__.get("forward"), block.forward) for block in blocks]
    try:
        for block, _, forward in own:
            block.forward = partial(run, forward)
        yield
    finally:
        for block, before, _ in own:
            restore_forward(block, before)


def restore(parameters: Sequence[NeuronParameters], values: Sequence[Mapping[str, Tensor]]) -> None:
    """Give ``parameters`` the ``values`` that they had at another point."""
    for entry, its in zip(parameters, values, strict=True):
        entry.load_state_dict(its)


def united(loss: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Give ``values`` the gradients, and return the loss, of all processes (`fas.world`) together: one sum of one tensor."""
    if world.size() == 1:
        return loss
    gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in values]
    total = world.summed(torch.cat([loss.detach().reshape(1), *(gradient.flatten() for gradient in gradients)]))
    sizes = [value.numel() for value in values]
    for value, part in zip(values, total[1:].split(sizes), strict=True):
        value.grad = part.view_as(value).clone()
    return total[0]


def descend(
    parameters: Sequence[NeuronParameters],
    loss_of: Callable[[int], Tensor],
    batches: int,
    steps: int,
    judged: Callable[[], float],
    before: float,
    lr: float = LAYER_LR,
    progress: Progress | None = None,
    together: bool = False,
) -> float:
    """Minimise the mean of ``loss_of(batch)``, a batch a step; keep the best point on the way, and return what it is worth.

    What counts is ``judged()``, which is ``before`` now: looked at after every pass over the batches and at the end, so a
    calibration that does not help changes nothing. ``together``: each process has a part of every loss, which are summed.
    """

    def present() -> list[dict[str, Tensor]]:
        return [{name: value.detach().clone() for name, value in p.state_dict().items()} for p in parameters]

    least, best = before, present()
    optimizer = optimizer_for(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for step in range(1, steps + 1):
        loss = loss_of((step - 1) % batches)
        optimizer.zero_grad()
        loss.backward()
        if together:
            loss = united(loss, [value for group in optimizer.param_groups for value in group["params"]])
        optimizer.step()
        schedule.step()
        for entry in parameters:
            entry.v_init.data.clamp_(0.0, 1.0)
        if progress is not None:
            progress.advance(1, f"loss {float(loss.detach()):.5f}")
        if step % batches == 0 or step == steps:
            now = judged()
            if better(now, least):
                least, best = now, present()
    restore(parameters, best)
    return least
