"""Puts sites and hooks into a model, as its family declares. Used by `prepare` and by loading alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion.description import describe
from fas.conversion.manifest import SavePretrained
from fas.errors import FasError
from fas.models import Placement, Plan, Segment
from fas.models.functions import ACTIVATIONS, LEVELS, OTHER_LEVELS, group_for, norm_of
from fas.models.linear import by_input
from fas.neurons import Clock, Site
from fas.neurons.clock import Stage
from fas.neurons.rotation import Rotation, rotate
from fas.operators import SpikingGroup
from fas.operators.population import NEURONS, Population
from fas.runtime import attention
from fas.runtime.calls import mark_calls
from fas.runtime.control import SetTimesteps
from fas.runtime.folding import fold_segment, silence_dropout
from fas.runtime.hooks import OutputHook, SiteHook
from fas.runtime.operators import ActivationHook, NormHook
from fas.runtime.places import Place
from fas.runtime.prefix import Shape, add_prefix
from fas.runtime.reclassed import choose_attention, reclass


def install(
    model: PreTrainedModel,
    plan: Plan,
    config: SpikingConfig,
    stage: Stage,
    prefix: Mapping[int, Shape] | None = None,
    device: torch.device | None = None,
) -> list[Site]:
    """Add the sites of ``plan`` to ``model`` in place and return them in the order of the plan.

    Args:
        model: The model without sites.
        plan: Where they are to be.
        config: What the SNN is to be.
        stage: Whether sites are QCFS units or neurons.
        prefix: By layer the shapes of the constants in front of every sequence, which stay 0 until they are filled.
        device: Where the parameters of sites lie; None: where those of their module lie, which may be nowhere (meta).
    """
    refuse_prepared(model)
    clock = Clock(config=config, stage=stage)
    sites: list[Site] = []
    for segment, placements in plan:
        new = [_place(placement, clock, len(sites) + i, device) for i, placement in enumerate(placements)]
        places = _places(segment, placements, new)
        fold_segment(segment, clock, places, any(p.in_attention for p in placements))
        sites += new
        if stage == "snn":
            silence_dropout(segment.module)
    reclass(model)
    attends = any(place.in_attention for _, placements in plan for place in placements)
    choose_attention(model, attention.NAME, everywhere=attends)
    for segment in decoders(plan) if prefix else ():
        add_prefix(segment, len(config.prefix), prefix or {}, model.dtype)
    mark_calls(model, [segment.module for segment, _ in plan], clock)
    model.save_pretrained = SavePretrained(model)  # type: ignore[assignment]
    model.set_timesteps = SetTimesteps(sites, model, describe)  # type: ignore[assignment]
    describe(model)
    return sites


def refuse_prepared(model: nn.Module) -> None:
    """Raise `FasError` where ``model`` has sites."""
    if any(isinstance(module, Site) for module in model.modules()):
        raise FasError(f"{type(model).__name__} has spiking sites already; start from the original model")


def decoders(plan: Plan) -> list[Segment]:
    """The segments of ``plan`` that can have a prefix."""
    return [segment for segment, _ in plan if segment.family.positions is not None]


def _place(placement: Placement, clock: Clock, order: int, device: torch.device | None) -> Site:
    spec, home = placement.spec, placement.home
    if device is None:
        device = next((p.device for p in [*home.parameters(), *placement.owner.parameters()]), None)
    held: nn.Module
    if spec.kind == "group":
        group = group_for(str(spec.role), home)
        held = SpikingGroup(group, placement.name, clock, LEVELS.get(str(spec.role), OTHER_LEVELS), order, device)
        site = held.site
    else:
        rotation = placement.rotation(clock.config)
        consumers = len(placement.consumers)
        site = Site(placement.name, placement.width, spec.signed, consumers, clock, order, rotation, spec.kind, device)
        held = site
        if spec.kind == "norm":
            held = Population(placement.name, placement.width // (2 * NEURONS), clock, order, device)
            site = held.site
    if spec.replaces is not None:
        placement.owner.set_submodule(spec.replaces, nn.Identity())
        site.replaces = True
    if site.center is not None:
        for consumer in placement.consumers:
            _give_bias(consumer)
    _hook(placement, site)
    if "sites" not in home._modules:
        home.add_module("sites", nn.ModuleDict())
    home.sites[spec.role or spec.name] = held  # type: ignore[index]
    return site


def _hook(placement: Placement, site: Site) -> None:
    """Let the module that a site is for find it; operands and functions of attention are found by its function."""
    spec, home = placement.spec, placement.home
    hook: NormHook | ActivationHook | OutputHook
    if spec.kind == "input":
        for consumer in placement.consumers:
            reader = SiteHook(site)
            reader.handle = consumer.register_forward_pre_hook(reader)
        return
    norm = norm_of(home)
    if norm is not None:
        if any(isinstance(entry, NormHook) for entry in home._forward_hooks.values()):
            return  # one for both its input and its root
        hook = NormHook(norm)
    elif spec.kind == "output":
        hook = OutputHook(site, home, spec.half)
    elif spec.role == "activation":
        hook = ActivationHook(ACTIVATIONS[type(home).__name__])
    else:
        return
    # the function comes before the encoding of its result
    hook.handle = home.register_forward_hook(hook, prepend=spec.role == "activation")


def _places(segment: Segment, placements: Sequence[Placement], sites: Sequence[Site]) -> list[Place]:
    """Where the modules stand that the sites of ``segment`` are for."""
    family, places = segment.family, []
    blocks = [m for m in segment.module.modules() if type(m).__name__ == family.block]
    block_of = {id(module): block for block in blocks for module in block.modules()}
    for placement, site in zip(placements, sites, strict=True):
        owner = placement.owner
        paths = {id(module): name for name, module in owner.named_modules()}
        for module in placement.consumers:
            hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
            mine = (hook for hook in hooks if isinstance(hook, SiteHook | OutputHook) and hook.site is site)
            block = block_of.get(id(owner), segment.module)
            places.append(Place(site, block, owner, paths[id(module)], module, next(mine, None)))
    return places


def _give_bias(module: nn.Module) -> None:
    """Give a linear layer without bias one of 0."""
    if module.bias is None:
        weight = cast(Tensor, module.weight)
        module.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=weight.requires_grad)


@torch.no_grad()
def rotate_reader(module: nn.Module, rotation: Rotation) -> None:
    """Rotate the input axis of a consumer's weight, so that on rotated input it computes what it did before."""
    weight = by_input(module).T
    weight.copy_(rotate(weight.double(), rotation))


@torch.no_grad()
def absorb(module: nn.Module, missing: Tensor) -> None:
    """Add W·``missing`` ``[C]``, the mean of what a site leaves out, to a consumer's bias (if it has one)."""
    if isinstance(module.bias, Tensor):
        weight = by_input(module).T
        module.bias += (weight.double() @ missing.to(weight.device, torch.float64)).to(module.bias.dtype)
