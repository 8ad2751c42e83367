"""Initial scales: per channel, the λ of least squared error on samples of what the site will carry (MMSE)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fas.config import SpikingConfig
from fas.errors import DataError
from fas.models import Placement
from fas.neurons import qcfs
from fas.neurons.rotation import rotate

SAMPLES_PER_SITE = 4096
CANDIDATES = 48


@dataclass
class Samples:
    """Rows a site will be given, and what it stands in for (the activation's output where it replaces one)."""

    inputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor, target: Tensor, keep: int, mask: Tensor | None) -> None:
        x, target = (v.detach().flatten(0, -2).float() for v in (x, target))
        if mask is not None and mask.numel() == len(x):  # padding says nothing about real activations
            x, target = x[mask.flatten().bool()], target[mask.flatten().bool()]
        rows = torch.linspace(0, len(x) - 1, min(keep, len(x)), device=x.device).long()
        self.inputs.append(x[rows].cpu())
        self.targets.append(target[rows].cpu())


class _Sampler:
    """Forward hook that takes evenly spaced rows of a consumer's input, or of an activation's input and output."""

    def __init__(self, samples: Samples, keep: int, replaces: bool, block: int) -> None:
        self.samples, self.keep, self.replaces, self.block = samples, keep, replaces, block
        self.mask: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = rotate(args[0], self.block)
        self.samples.add(x, output if self.replaces else x, self.keep, self.mask)


def sample_inputs(
    model: nn.Module, placements: list[Placement], config: SpikingConfig, batches: Iterable[Mapping[str, Any]]
) -> dict[str, Samples]:
    """Run ``batches`` (keyword arguments of the model) through the untouched ANN, sampling what each site will see."""
    listed = list(batches)
    if not listed:
        raise DataError("no calibration batches: the initial scales are fitted to data; give at least one batch")
    found: dict[str, Samples] = {}
    samplers = []
    training = model.training
    with ExitStack() as stack, torch.no_grad():
        for place in placements:
            samples = found[place.name] = Samples()
            replaces = place.spec.replaces
            source = place.owner.get_submodule(replaces) if replaces else place.consumers[0]
            keep = max(1, SAMPLES_PER_SITE // len(listed))
            hook = _Sampler(samples, keep, replaces is not None, place.rotation(config))
            samplers.append(hook)
            stack.callback(source.register_forward_hook(hook).remove)
        stack.callback(model.train, training)
        model.eval()
        for batch in listed:
            for hook in samplers:
                hook.mask = batch.get("attention_mask")
            model(**{key: value for key, value in batch.items() if key != "labels"})
    return found


def mmse_scale(samples: Samples, levels: int, signed: bool) -> Tensor:
    """λ ``[C]``: of `CANDIDATES` fractions of each channel's largest target, the one with least ‖h(x) − target‖²."""
    x, target = torch.cat(samples.inputs), torch.cat(samples.targets)
    largest = (target.abs() if signed else target.clamp(min=0)).amax(0)
    typical = largest.mean().clamp(min=1e-6)
    largest = torch.where(largest > 0, largest, typical)  # a channel that was always silent gets a typical scale
    best, best_error = largest, torch.full_like(largest, float("inf"))
    for fraction in torch.linspace(0.05, 1.0, CANDIDATES).tolist():
        scale = largest * fraction
        error = (qcfs(x, scale, levels, signed) - target).square().mean(0)
        better = error < best_error
        best, best_error = torch.where(better, scale, best), torch.where(better, error, best_error)
    return best.clamp(min=1e-6)


def mean_error(samples: Samples, scale: Tensor, levels: int, signed: bool) -> Tensor:
    """E[target − h(x)] ``[C]``: what a unit that stands in for GELU leaves out on average (its negative values)."""
    x, target = torch.cat(samples.inputs), torch.cat(samples.targets)
    return (target - qcfs(x, scale, levels, signed)).mean(0)
