"""Finds the segments of a model and the places of its sites, and refuses what no family accounts for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn
from transformers.activations import ACT2CLS
from transformers.pytorch_utils import Conv1D

from fas.config import SpikingConfig
from fas.errors import UnsupportedModelError
from fas.models.family import COMMON_ANALOG, REGISTRY, Family, SiteSpec, relative_of, supported
from fas.models.functions import activation_of, group_for, known_norm_of
from fas.models.linear import obstacle
from fas.neurons.rotation import NO_ROTATION, Rotation, block_of
from fas.operators.population import NEURONS

_ACTIVATIONS = tuple({cls[0] if isinstance(cls, tuple) else cls for cls in ACT2CLS.values()})


@dataclass(frozen=True)
class Segment:
    """A part of the model through which time is folded."""

    name: str
    module: nn.Module
    family: Family
    layers_read: int | None = None
    """How many of its layers the model reads; None: all."""


@dataclass(frozen=True)
class Placement:
    """One site to be: the module that owns it, and its consumers."""

    name: str
    """Full name of the site's owner and the site, e.g. ``transformer.h.0.ffn_hidden``."""
    owner: nn.Module
    spec: SiteSpec
    consumers: tuple[nn.Module, ...]
    width: int

    @property
    def home(self) -> nn.Module:
        """The module that holds the site: its owner, or the one whose operand, output, norm or function it is for."""
        return self.owner if self.spec.kind == "input" else self.consumers[0]

    @property
    def in_attention(self) -> bool:
        """Whether it is the attention function that finds the site."""
        return self.spec.kind in ("operand", "cross") or self.spec.role in ("exponential", "reciprocal", "softcap")

    def centers(self, config: SpikingConfig) -> bool:
        """Whether the site spikes distances from each channel's mean under ``config``."""
        return config.center and self.spec.signed and self.spec.kind == "input"

    def rotation(self, config: SpikingConfig) -> Rotation:
        """Rotation in front of the site under ``config``."""
        rotated = {"hadamard": ("product",), "heads": ("product", "heads"), "none": ()}[config.rotation]
        if self.spec.rotates not in rotated:
            return NO_ROTATION
        return Rotation(block_of(self.width), across=self.spec.rotates == "heads")


def find_segments(model: nn.Module) -> list[Segment]:
    """Every registered segment of ``model``; raises `UnsupportedModelError` if there is none."""
    found = [
        Segment(name, module, REGISTRY[type(module).__name__])
        for name, module in model.named_modules()
        if type(module).__name__ in REGISTRY
    ]
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no part that FAS can convert; {relative_of(model)}supported families are "
            f"{supported()}, and docs/adding-a-family.md says how to declare a new one"
        )
    modules = dict(model.named_modules())
    readers = [(segment, segment.family.reads) for segment in found if segment.family.reads is not None]
    for reader, (place, setting) in readers:
        owner = reader.name.rpartition(".")[0]
        layers = getattr(modules[owner].config, setting)
        found = [_read_by(s, layers) if s.name == f"{owner}.{place}".lstrip(".") else s for s in found]
    return sorted(found, key=lambda segment: segment.family.runs_last)


def _read_by(segment: Segment, layers: int | list[int]) -> Segment:
    """The segment with the number of layers up to the last of the hidden states ``layers``; state 0 is the embedding."""
    depth = segment.module.config.num_hidden_layers  # type: ignore[union-attr]
    states = [layers] if isinstance(layers, int) else layers
    return replace(segment, layers_read=max(state if state >= 0 else depth + 1 + state for state in states))


def find_placements(segment: Segment, spiking: SpikingConfig) -> list[Placement]:
    """The sites of ``segment`` as ``spiking`` covers it; inside a block in the order in which they are declared.

    Raises `UnsupportedModelError` for a module that no declaration accounts for, and where a count is not as declared.
    """
    _refuse_changed(segment)
    _refuse_unknown(segment)
    family = segment.family
    blocks = [(n, m) for n, m in segment.module.named_modules(prefix=segment.name) if type(m).__name__ == family.block]
    expected = getattr(getattr(segment.module, "config", None), "num_hidden_layers", len(blocks))
    if family.block and len(blocks) != expected:
        raise UnsupportedModelError(
            f"{segment.name or type(segment.module).__name__} has {len(blocks)} {family.block} modules where its "
            f"configuration says {expected} layers"
        )
    if spiking.coverage in ("attention", "full") and blocks and all(spec.role is None for spec in family.sites):
        raise UnsupportedModelError(
            f"the operands of attention cannot spike in {segment.name or type(segment.module).__name__} (family "
            f"{family.name!r}) yet; choose coverage='linear'"
        )
    unread = blocks[len(blocks) if segment.layers_read is None else segment.layers_read :]
    blocks = blocks[: len(blocks) - len(unread)]
    owners = [(segment.name, segment.module, family.segment_sites), *((n, m, family.sites) for n, m in blocks)]
    config = getattr(segment.module, "config", None)
    places = [p for name, owner, specs in owners for p in _places(name, owner, specs, spiking, config)]
    if spiking.coverage == "full":
        left_out = {id(module) for _, block in unread for module in block.modules()}
        left_out |= {id(p.owner.get_submodule(p.spec.replaces)) for p in places if p.spec.replaces}
        places += _functions(segment, left_out)
    return sorted(places, key=lambda place: place.spec.last)


def _functions(segment: Segment, left_out: set[int]) -> Iterator[Placement]:
    """Norms and activations of ``segment`` that groups compute, found by class."""
    for name, module in segment.module.named_modules(prefix=segment.name):
        if id(module) in left_out:
            continue
        specs: list[tuple[SiteSpec, int]] = []
        if name.rsplit(".", 1)[-1] in segment.family.twice:
            continue
        if known_norm_of(name, module) is not None:
            channels = cast(Tensor, module.weight).shape[-1]
            spec = SiteSpec("norm_input", ("",), "full", kind="norm", role="input")
            specs = [(spec, 2 * NEURONS * channels), _group("rsqrt", module)]
        elif isinstance(module, (*_ACTIVATIONS, nn.GELU)):
            specs = [_group("activation", module)] if activation_of(name, module) else []
        for spec, width in specs:
            yield Placement(f"{name}.{spec.name}".lstrip("."), module, spec, (module,), width)


def _group(role: str, module: nn.Module) -> tuple[SiteSpec, int]:
    spec = SiteSpec(role, ("",), "full", signed=False, kind="group", role=role)
    return spec, group_for(role, module).neurons


def _places(
    name: str, owner: nn.Module, specs: tuple[SiteSpec, ...], spiking: SpikingConfig, config: Any
) -> Iterator[Placement]:
    for spec in specs:
        if spec.needs is not None and _submodule(owner, spec.needs) is None:
            continue
        consumers = [_submodule(owner, path) for path in spec.consumers]
        if spec.optional and all(module is None for module in consumers):
            continue
        missing = [path for path, module in zip(spec.consumers, consumers, strict=True) if module is None]
        if missing:
            raise UnsupportedModelError(f"{name} ({type(owner).__name__}) lacks {missing}, which its family declares")
        if spec.role == "softcap" and not getattr(config, "attn_logit_softcapping", None):
            continue
        if spec.is_in(spiking.coverage):
            modules = tuple(module for module in consumers if module is not None)
            if spec.replaces is not None and spiking.activation == "keep":
                spec = replace(spec, replaces=None, signed=True)
            width = _width(owner, spec, modules[0], config)
            yield Placement(f"{name}.{spec.name}".lstrip("."), owner, spec, modules, width)


def input_width(module: nn.Module) -> int:
    """Channels of a linear layer's input (``Conv1D`` stores its weight transposed)."""
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0]
    raise UnsupportedModelError(f"{type(module).__name__} cannot consume spikes; it is neither Linear nor Conv1D")


def _width(owner: nn.Module, spec: SiteSpec, module: nn.Module, config: Any) -> int:
    if spec.kind == "input":
        return input_width(module)
    if spec.kind == "group":
        return group_for(str(spec.role), module).neurons
    if spec.kind == "output":
        return input_width(cast(nn.Module, _submodule(owner, str(spec.read_by))))
    return operand_width(str(spec.role), module, config)


def operand_width(role: str, module: nn.Module, config: Any) -> int:
    """Channels of an attention operand: a head and feature each; of the probabilities a head each."""
    heads = int(getattr(config, "num_attention_heads", None) or module.num_heads)  # type: ignore[arg-type]
    shared = getattr(config, "num_key_value_heads", None) or heads
    if role == "probabilities":
        return heads
    features = getattr(module, "head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    return (heads if role == "query" else shared) * features


def _submodule(owner: nn.Module, path: str) -> nn.Module | None:
    module: nn.Module | None = owner
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


def _consumers(segment: Segment) -> Iterator[tuple[str, SiteSpec, nn.Module]]:
    """Full names and modules of all that the family declares as consumers."""
    family = segment.family
    specs = {family.block: family.sites, family.segment: family.segment_sites}
    for name, owner in segment.module.named_modules(prefix=segment.name):
        for spec in specs.get(type(owner).__name__, ()):
            for path in spec.consumers:
                if (module := _submodule(owner, path)) is not None:
                    yield f"{name}.{path}".lstrip("."), spec, module


def _refuse_changed(segment: Segment) -> None:
    """Linear layers whose weights could not be changed in place (adapters, quantized ones): a conversion would get lost."""
    for name, spec, module in _consumers(segment):
        if spec.kind == "input" and (why := obstacle(module)) is not None:
            raise UnsupportedModelError(
                f"{name} is a {type(module).__module__}.{type(module).__name__}, which cannot be converted: {why}; convert the "
                "model as it was published, with adapters merged (merge_and_unload) and weights that are no integers"
            )


def _refuse_unknown(segment: Segment) -> None:
    """Every module must be a declared consumer, a declared analog class, or an activation."""
    family = segment.family
    analog = COMMON_ANALOG | family.analog | {family.segment, family.block, "Site", "NeuronParameters", "ModuleDict"}
    analog |= {"Group", "Population", "Prefix"}
    claimed = {id(module) for _, _, module in _consumers(segment)}
    for name, module in segment.module.named_modules(prefix=segment.name):
        name_of_class = type(module).__name__.removeprefix("Spiking")  # a reclassed attention module
        if id(module) in claimed or name_of_class in analog or isinstance(module, _ACTIVATIONS):
            continue
        raise UnsupportedModelError(
            f"{name} is a {type(module).__name__}, which the family {family.name!r} does not declare: FAS would not "
            "know whether it spikes; convert a model without it or declare it in fas/models"
        )
