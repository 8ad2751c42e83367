"""Compensation: weights that read quantized values are corrected in closed form, site by site, without gradients.

What a linear layer reads in the QCFS model is h = Q(x′) where the ANN has x. The best linear estimate of x from h,

    x̂ = x̄ + (I + A)(h − h̄),   A = E[(x − x̄ − h + h̄)(h − h̄)ᵀ]·(E[(h − h̄)(h − h̄)ᵀ] + μI)⁻¹

is folded into the weights behind: W ← W(I + A), b ← b + W(x̄ − h̄ − Ah̄). Layers without bias take the moments around 0. The QCFS
model is corrected so far when h is measured, so errors of earlier layers are made up for, too (the asymmetric objective of
GPTAQ, arXiv 2504.02692; GPTQ, 2210.17323, has the ridge μ: a share of the mean of the diagonal).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fas.errors import FasError
from fas.models import Segment, find_segments
from fas.neurons import Clock, Site
from fas.progress import Progress, Silent
from fas.runtime.control import as_qcfs, clock_of
from fas.runtime.hooks import SiteHook
from fas.runtime.replay import Stream, blocks_of, checked, run_block, streams

DAMPING = 0.01
"""Of the mean of the moments' diagonal."""


@torch.no_grad()
def compensate(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    progress: Progress | None = None,
    damping: float = DAMPING,
) -> None:
    """Correct the weights of the QCFS ``model`` in place, so that its linear layers give what those of ``teacher`` do.

    Args:
        model: A prepared model, as QCFS model.
        teacher: The ANN that it was prepared from, with the same prefix.
        batches: Keyword arguments of the model (``input_ids`` ``[B, S]`` …), never evaluation data.
        progress: Who is told how far it is.
        damping: The ridge, as a share of the mean of the diagonal.

    Raises:
        DataError: There are no batches, or they are padded.
        FasError: The models differ in their layers.
    """
    progress, clock, listed = progress or Silent(), clock_of(model), checked(batches)
    training = model.training, teacher.training
    model.eval()
    teacher.eval()
    try:
        with as_qcfs(model):
            for segment, like in zip(find_segments(model), find_segments(teacher), strict=True):
                _segment(model, segment, teacher, like, listed, clock, progress, damping)
    finally:
        model.train(training[0])
        teacher.train(training[1])


def _segment(
    model: PreTrainedModel,
    segment: Segment,
    teacher: PreTrainedModel,
    like: Segment,
    batches: Sequence[Mapping[str, Any]],
    clock: Clock,
    progress: Progress,
    damping: float,
) -> None:
    blocks, others = blocks_of(segment), blocks_of(like)
    if len(blocks) != len(others):
        raise FasError(
            f"{segment.name} has {len(blocks)} layers and its teacher {len(others)}; give the model it came from"
        )
    progress.start("Compensation of weights", len(blocks))
    with ExitStack() as stack:
        given = stack.enter_context(streams(model, segment, batches, model.device, None, "student"))
        wanted = stack.enter_context(streams(teacher, like, batches, teacher.device, None, "teacher"))
        for index, (block, other) in enumerate(zip(blocks, others, strict=True)):
            pair = BlockPair(block, other, index, clock)
            for site in sites_in(block):
                correct(pair, site, given, wanted, damping)
            error = pair.advance(given, wanted)
            progress.advance(1, f"layer {index}, relative error {error:.4f}")
    progress.done()


class _Reached(Exception):
    """Ends a block at the module whose input was asked for."""


class BlockPair:
    """One block of the QCFS model and the same of the ANN."""

    def __init__(self, block: nn.Module, teacher: nn.Module, index: int, clock: Clock) -> None:
        self.block, self.teacher, self.index, self.clock = block, teacher, index, clock
        self.names = {module: name for name, module in block.named_modules()}

    def readers(self, site: Site) -> list[nn.Module]:
        """The linear layers of the block that read ``site``."""
        return [
            module
            for module in self.names
            if any(isinstance(hook, SiteHook) and hook.site is site for hook in module._forward_pre_hooks.values())
        ]

    def at(self, site: Site, given: Stream, wanted: Stream) -> tuple[Tensor, Tensor]:
        """What the readers of ``site`` are given: spikes' values h, and the ANN's x as the site sees it, ``[N, C]`` each."""
        reader = self.readers(site)[0]
        hidden = _input_of(reader, lambda: run_block(self.block, self.index, given, self.clock), last=True)
        analog = self.teacher.get_submodule(self.names[reader])
        exact = _input_of(analog, lambda: run_block(self.teacher, self.index, wanted, self.clock))
        return hidden.flatten(0, -2).float(), site.rotated(exact).flatten(0, -2).float()

    def advance(self, given: Sequence[Stream], wanted: Sequence[Stream]) -> float:
        """Move both streams past the block; the squared error of the QCFS model's relative to the ANN's."""
        error = power = 0.0
        for ours, theirs in zip(given, wanted, strict=True):
            ours.hidden = run_block(self.block, self.index, ours, self.clock)
            theirs.hidden = run_block(self.teacher, self.index, theirs, self.clock)
            target = cast(Tensor, theirs.hidden)
            error += float((cast(Tensor, ours.hidden) - target).square().sum())
            power += float(target.square().sum())
        return error / max(power, 1e-30)


def sites_in(block: nn.Module) -> list[Site]:
    """The sites of a block in front of linear layers, in the order in which they run."""
    found = [module for module in block.modules() if isinstance(module, Site) and module.kind == "input"]
    return sorted(found, key=lambda site: site.order)


def _input_of(module: nn.Module, run: Callable[[], Any], last: bool = False) -> Tensor:
    """The input of ``module`` during ``run``, which ends there; ``last``: behind its other pre-hooks."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _Reached

    handle = module.register_forward_pre_hook(keep, prepend=not last)
    try:
        run()
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


class Moments:
    """First and second moments of h ``[N, C]``, and of what it misses, x − h."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.missing = torch.zeros_like(self.gram)
        self.mean, self.mean_missing = (torch.zeros(width, dtype=torch.float64, device=device) for _ in range(2))

    def add(self, h: Tensor, x: Tensor) -> None:
        rest = x - h
        self.count += len(h)
        self.gram += (h.T @ h).double()
        self.missing += (rest.T @ h).double()
        self.mean += h.sum(0).double()
        self.mean_missing += rest.sum(0).double()

    def solve(self, damping: float, centred: bool) -> tuple[Tensor, Tensor]:
        """A ``[C, C]`` and what the estimate adds, x̄ − h̄ − A·h̄ ``[C]`` (0 where moments are around 0)."""
        gram, missing = self.gram / self.count, self.missing / self.count
        mean, offset = self.mean / self.count, self.mean_missing / self.count
        if centred:
            gram, missing = gram - torch.outer(mean, mean), missing - torch.outer(offset, mean)
        ridge = damping * gram.diagonal().mean().clamp(min=1e-12)
        gram.diagonal().add_(ridge)
        matrix = torch.linalg.solve(gram, missing.T).T  # the moments are symmetric
        return matrix, offset - matrix @ mean if centred else torch.zeros_like(mean)


def correct(pair: BlockPair, site: Site, given: Sequence[Stream], wanted: Sequence[Stream], damping: float) -> None:
    """Fold the best linear estimate of what ``site`` encodes into the weights that read it."""
    readers = pair.readers(site)
    moments = Moments(site.width, site.log_scale.device)
    for ours, theirs in zip(given, wanted, strict=True):
        moments.add(*pair.at(site, ours, theirs))
    for reader in readers:
        bias = cast(Tensor | None, reader.bias)
        matrix, offset = moments.solve(damping, centred=bias is not None)
        weight = cast(Tensor, reader.weight).data
        by_input = weight if isinstance(reader, Conv1D) else weight.T  # [C, out], a view
        before = by_input.double()
        if bias is not None:
            bias.data += (offset @ before).to(bias.dtype)
        by_input += (matrix.T @ before).to(weight.dtype)
