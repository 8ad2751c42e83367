"""Puts sites and hooks into a model, as its family declares. Used by `prepare` and by loading alike."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion.description import describe
from fas.errors import FasError
from fas.models import Placement, Plan
from fas.neurons import Clock, Site
from fas.neurons.clock import Stage
from fas.neurons.rotation import rotate
from fas.runtime.attention import use_spiking_attention
from fas.runtime.control import SetTimesteps
from fas.runtime.folding import fold_segment, silence_dropout
from fas.runtime.hooks import SiteHook


def install(model: PreTrainedModel, plan: Plan, config: SpikingConfig, stage: Stage) -> list[Site]:
    """Add the sites of ``plan`` to ``model`` in place and return them in the order in which they run."""
    if any(isinstance(module, Site) for module in model.modules()):
        raise FasError(f"{type(model).__name__} has spiking sites already; start from the original model")
    clock = Clock(config=config, stage=stage)
    sites: list[Site] = []
    for segment, placements in plan:
        sites += [_place(placement, clock, len(sites) + i) for i, placement in enumerate(placements)]
        fold_segment(segment, clock, any(p.spec.role is not None for p in placements))
        if stage == "snn":
            silence_dropout(segment.module)
    if any(site.role is not None for site in sites):
        use_spiking_attention(model)
    model.set_timesteps = SetTimesteps(sites, model, describe)  # type: ignore[assignment]
    describe(model)
    return sites


def _place(placement: Placement, clock: Clock, order: int) -> Site:
    spec = placement.spec
    device = next(placement.consumers[0].parameters()).device
    consumers = len(placement.consumers)
    block = placement.rotation(clock.config)
    site = Site(placement.name, placement.width, spec.signed, consumers, clock, order, block, spec.role, device)
    if "sites" not in placement.home._modules:
        placement.home.add_module("sites", nn.ModuleDict())
    placement.home.sites[spec.role or spec.name] = site  # type: ignore[index]
    if spec.role is not None:
        return site  # the attention function finds it
    if spec.replaces is not None:
        placement.owner.set_submodule(spec.replaces, nn.Identity())
    for consumer in placement.consumers:
        hook = SiteHook(site)
        hook.handle = consumer.register_forward_pre_hook(hook)
    return site


def _by_input(module: nn.Module) -> Tensor:
    """A view of a consumer's weight as ``[out, in]`` (Conv1D keeps it transposed)."""
    weight = cast(Tensor, module.weight)
    return weight if isinstance(module, nn.Linear) else weight.T


@torch.no_grad()
def rotate_reader(module: nn.Module, block: int) -> None:
    """Rotate the input axis of a consumer's weight, so that on rotated input it computes what it did before."""
    weight = _by_input(module)
    weight.copy_(rotate(weight.double(), block))


@torch.no_grad()
def absorb(module: nn.Module, missing: Tensor) -> None:
    """Add W·``missing`` ``[C]``, the mean of what a site leaves out, to a consumer's bias (if it has one)."""
    if isinstance(module.bias, Tensor):
        weight = _by_input(module)
        module.bias += (weight.double() @ missing.to(weight.device, torch.float64)).to(module.bias.dtype)
