"""Puts sites and hooks into a model, as its family declares. Used by `prepare` and by loading alike."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion.description import describe
from fas.errors import FasError
from fas.models import Placement, find_placements, find_segments
from fas.neurons import Clock, Site
from fas.neurons.clock import Stage
from fas.runtime.control import SetTimesteps
from fas.runtime.folding import fold_segment, silence_dropout
from fas.runtime.hooks import SiteHook


def install(model: PreTrainedModel, config: SpikingConfig, stage: Stage) -> list[Site]:
    """Add the sites of ``config.coverage`` to ``model`` in place and return them in the order in which they run.

    Raises `UnsupportedModelError` before anything is changed where a family does not account for the model.
    """
    if any(isinstance(module, Site) for module in model.modules()):
        raise FasError(f"{type(model).__name__} has spiking sites already; start from the original model")
    segments = find_segments(model)
    plans = [(segment, find_placements(segment, config.coverage)) for segment in segments]
    clock = Clock(config=config, stage=stage)
    sites: list[Site] = []
    for segment, placements in plans:
        sites += [_place(placement, clock, len(sites) + i) for i, placement in enumerate(placements)]
        fold_segment(segment, clock)
        if stage == "snn":
            silence_dropout(segment.module)
    model.set_timesteps = SetTimesteps(sites, model, describe)  # type: ignore[assignment]
    describe(model)
    return sites


def _place(placement: Placement, clock: Clock, order: int) -> Site:
    spec = placement.spec
    weight = placement.consumers[0].weight
    device = weight.device if torch.is_tensor(weight) else None
    consumers = len(placement.consumers)
    site = Site(placement.name, placement.width, spec.signed, consumers, clock, order, device)
    if "sites" not in placement.owner._modules:
        placement.owner.add_module("sites", nn.ModuleDict())
    placement.owner.sites[spec.name] = site  # type: ignore[index]
    if spec.replaces is not None:
        placement.owner.set_submodule(spec.replaces, nn.Identity())
    for consumer in placement.consumers:
        hook = SiteHook(site)
        hook.handle = consumer.register_forward_pre_hook(hook)
    return site
