"""What a conversion would make of a model, read from its configuration: no weights are loaded, nothing changes."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion.reading import configuration, reading
from fas.errors import ConfigError, FasError, UnsupportedModelError
from fas.models import Placement, Segment, Stack, linear_macs, planned, unknown_stacks

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.Dropout, nn.Identity)
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class SiteGroup:
    """The same site in every layer."""

    pattern: str
    """Name with ``*`` for the layer."""
    count: int
    width: int
    signed: bool
    consumers: tuple[str, ...]
    replaces: str | None
    """Activation that the site stands in for."""


@dataclass(frozen=True)
class Workload:
    """What the memory figures are for."""

    timesteps: int = 8
    batch_size: int = 8
    length: int = 256
    dtype: str = "float32"
    unit: str = "sequences"
    """What a batch is of; ``length`` of images follows from the model."""


@dataclass(frozen=True)
class Inspection:
    """Sites, what stays analog, and rough memory."""

    model: str
    architecture: str
    families: list[str]
    coverage: str
    segments: dict[str, int]
    """Layers of each segment."""
    sites: list[SiteGroup]
    analog: dict[str, int]
    """What stays analog in the segments, and how often it is there."""
    outside: dict[str, int]
    """What lies outside of the segments, and how often: it is analog, too, and runs without time."""
    unknown: list[Stack]
    """Layers that no family knows."""
    parameters: int
    macs_per_token: dict[str, int]
    """Multiply–accumulates of linear layers: ``covered`` by sites, ``blocks`` (all in the segments), ``unknown`` (layers of
    `unknown`), ``head``."""
    memory: dict[str, int]
    """Bytes, rough."""
    seconds: dict[str, float]
    """Matrix products alone, on this machine: ``stage1_step`` (with its control and its teacher), ``snn_batch``."""
    workload: Workload
    converted: dict[str, Any] = field(default_factory=dict)
    """Of a converted folder: its spiking config, stage and calibrated neurons."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def inspect_model(name: str, place: str, coverage: str | None, workload: Workload) -> Inspection:
    """Look at the model in ``place`` (folder or hub id), called ``name``, by its configuration.

    ``coverage`` None takes that of a converted folder, else ``linear``. Raises `FasError` for what transformers
    cannot build, and `UnsupportedModelError` with the first module that no family accounts for.
    """
    config, converted = configuration_of(name, place)
    spiking = converted.get("spiking", {})
    kept = {
        name: spiking[name]
        for name in ("rotation", "center", "scales", "activation", "targets", "ignore")
        if name in spiking
    }
    if spiking and coverage is not None and coverage != spiking["coverage"]:
        raise ConfigError(
            f"{name} was converted with coverage {spiking['coverage']}, so it has no sites of coverage {coverage}; leave "
            "--coverage out, or inspect the model that it was converted from"
        )
    settled = SpikingConfig(**kept | {"coverage": coverage or spiking.get("coverage", "linear")})
    return inspected(name, _skeleton(name, config), settled, workload, converted)


def inspected(
    name: str,
    model: PreTrainedModel,
    settled: SpikingConfig,
    workload: Workload,
    converted: dict[str, Any] | None = None,
) -> Inspection:
    """The same of ``model``, which needs no memory for its weights, as ``settled`` would convert it."""
    if (tokens := tokens_of_an_image(model.config)) is not None:
        workload = replace(workload, length=tokens, unit="images")
    plan = planned(model, settled)
    segments, placements = [segment for segment, _ in plan], [place for _, places in plan for place in places]
    unknown = unknown_stacks(model, segments)
    macs = _macs(model, segments, placements, unknown)
    return Inspection(
        model=name,
        architecture=type(model).__name__,
        families=sorted({segment.family.name for segment in segments}),
        coverage=settled.coverage,
        segments={s.name or type(s.module).__name__: _blocks(s) for s in segments},
        sites=_groups(placements),
        analog=_analog(model, segments, placements, settled),
        outside=_outside(model, segments),
        unknown=unknown,
        parameters=sum(p.numel() for p in model.parameters()),
        macs_per_token=macs,
        memory=_memory(model, placements, workload),
        seconds=_seconds(macs, workload),
        workload=workload,
        converted=converted or {},
    )


def configuration_of(name: str, place: str, here: bool = False) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Of the model in ``place`` (folder or hub id), called ``name``, and of a converted one how it was converted; raises
    `FasError` where there is none, or another quantization. ``here``: the hub is not asked, its cache is."""
    local = Path(place).exists()
    try:
        config = configuration(name, place, here)
    except FasError as error:
        if local and not (Path(place) / "config.json").exists():
            raise FasError(f"{name} is a folder without config.json, so it holds no model") from error
        raise
    description = getattr(config, "quantization_config", None)
    if description is None:
        return config, {}
    values = description if isinstance(description, dict) else description.to_dict()
    if values.get("quant_method") != "fas":
        raise FasError(f"{name} is quantized ({values.get('quant_method')}); FAS starts from the original model")
    delattr(config, "quantization_config")  # the skeleton is that of the original model
    return config, {key: values[key] for key in ("stage", "spiking", "neurons") if key in values}


def _skeleton(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The model with the head that its configuration names, without memory for its weights."""
    architecture = (config.architectures or [""])[0]
    build = getattr(transformers, architecture, None)
    try:
        with reading(name), torch.device("meta"):
            return build(config) if build is not None else AutoModelForCausalLM.from_config(config)
    except FasError as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        raise FasError(
            f"{name} names no architecture that transformers has: {architecture or config.model_type!r}"
        ) from None


def _blocks(segment: Segment) -> int:
    return sum(type(module).__name__ == segment.family.block for module in segment.module.modules())


def _groups(placements: list[Placement]) -> list[SiteGroup]:
    counts = Counter(
        SiteGroup(re.sub(r"\.\d+\.", ".*.", p.name), 0, p.width, p.spec.signed, _readers(p), p.spec.replaces)
        for p in placements
    )
    return [SiteGroup(**(vars(group) | {"count": count})) for group, count in counts.items()]


def _readers(place: Placement) -> tuple[str, ...]:
    return place.spec.consumers if any(place.spec.consumers) else ("itself",)


def _macs(
    model: PreTrainedModel, segments: list[Segment], placements: list[Placement], unknown: list[Stack]
) -> dict[str, int]:
    head = model.get_output_embeddings()
    return {
        "covered": sum(linear_macs(c) for place in placements if place.spec.kind == "input" for c in place.consumers),
        "blocks": sum(linear_macs(module) for segment in segments for module in segment.module.modules()),
        "unknown": sum(stack.macs for stack in unknown),
        "head": linear_macs(head) if head is not None else 0,
    }


def _analog(
    model: PreTrainedModel, segments: list[Segment], placements: list[Placement], config: SpikingConfig
) -> dict[str, int]:
    """Leaf modules of the segments that no site reaches, by class, and the parts of attention that are no modules."""
    # a linear layer whose output spikes is covered only where its input does, too
    covering = [p for p in placements if p.spec.kind != "output" or not any(map(linear_macs, p.consumers))]
    spiking = {id(consumer) for place in covering for consumer in place.consumers}
    spiking |= {id(place.owner.get_submodule(place.spec.replaces)) for place in placements if place.spec.replaces}
    kinds = _kinds(module for segment in segments for module in segment.module.modules() if id(module) not in spiking)
    modules = _attention_modules(model) or sum(map(_blocks, segments))
    operands = [place for place in placements if place.spec.kind in ("operand", "cross")]
    products = 2 * (modules - len({id(place.home) for place in operands}))
    softmax = modules - sum(place.spec.role == "exponential" for place in placements)
    found = {"softmax": softmax, "attention products (query·key, probabilities·value)": products}
    if softmax < modules:
        found["row maximum, sum and mask of softmax"] = modules
    if any(place.spec.kind in ("norm", "group") for place in placements):
        norms = sum(place.spec.kind == "norm" for place in placements)
        found["sums, means and constant factors of norms"] = norms
        found["comparisons, exponents and shifts of operators"] = sum(p.spec.kind == "group" for p in placements)
    rotated = sum(place.rotation(config).block > 1 for place in placements)
    if rotated:
        kinds["Hadamard rotation in front of a site"] = rotated
    return {what: count for what, count in {**found, **kinds}.items() if count}


def _outside(model: PreTrainedModel, segments: list[Segment]) -> dict[str, int]:
    inside = {id(module) for segment in segments for module in segment.module.modules()}
    head = model.get_output_embeddings()
    kinds = _kinds(module for module in model.modules() if id(module) not in inside and module is not head)
    return {**({} if head is None else {"output head": 1}), **kinds}


def _kinds(modules: Iterable[nn.Module]) -> Counter[str]:
    """Leaf modules by class."""
    kinds: Counter[str] = Counter()
    for module in modules:
        if not isinstance(module, _CONTAINERS) and next(module.children(), None) is None:
            kinds[f"{type(module).__name__} (not covered)" if linear_macs(module) else type(module).__name__] += 1
    return kinds


def _attention_modules(model: PreTrainedModel) -> int:
    """How many modules have attention products; 0 where FAS cannot reach them."""
    try:
        plan = planned(model, SpikingConfig(coverage="attention"))
    except UnsupportedModelError:
        return 0
    return sum(place.spec.role == "query" for _, places in plan for place in places)


def _seconds(macs: dict[str, int], work: Workload) -> dict[str, float]:
    second = 2 * work.batch_size * work.length / throughput()
    without_time = macs["unknown"] + macs["head"]
    dense = (macs["blocks"] + without_time) * second
    # forward and backward are three forwards: of the control and of the QCFS model; the teacher runs forward only
    return {"stage1_step": 7 * dense, "snn_batch": (work.timesteps * macs["blocks"] + without_time) * second}


def throughput() -> float:
    """Floating-point operations a second of a large fp32 product here (best of three)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    square = torch.ones(1024, 1024, device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        float((square @ square)[0, 0])  # reading one entry waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def _memory(model: PreTrainedModel, placements: list[Placement], work: Workload) -> dict[str, int]:
    parameters = sum(p.numel() for p in model.parameters())
    config = model.config.get_text_config()
    bytes_each = _BYTES[work.dtype]
    rows = work.timesteps * work.batch_size * work.length
    widest = max([p.width for p in placements if p.spec.kind != "norm"], default=config.hidden_size)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # where scores pass a site, about eight fp32 copies of them are alive
    spiking = any(place.spec.kind in ("operand", "cross") for place in placements)
    scores = 4 * 8 * rows * work.length * config.num_attention_heads * spiking
    return {
        "stage1": 16 * parameters,
        "weights": bytes_each * parameters,
        # alive at once: the residual stream, the FFN, and eight fp32 copies inside its site (measured: within 20 %)
        "activations": rows * (bytes_each * (2 * config.hidden_size + 2 * widest) + 4 * 8 * widest) + scores,
        "logits": 4 * work.batch_size * _answers(model, work.length),
        # what does not generate keeps no keys and values
        "exact_cache": rows * bytes_each * 2 * heads * head_width * config.num_hidden_layers * model.can_generate(),
    }


def _answers(model: PreTrainedModel, length: int) -> int:
    """Logits of a sequence of ``length`` tokens: over words or labels, of each token or of the whole."""
    head, kind = model.get_output_embeddings(), type(model).__name__
    labels = model.config.num_labels or 0
    if head is not None and linear_macs(head):
        return length * head.weight.shape[0]
    if kind.endswith(("SequenceClassification", "ImageClassification")):
        return labels
    if kind.endswith("TokenClassification"):
        return length * labels
    return 2 * length if kind.endswith("QuestionAnswering") else 0


def tokens_of_an_image(config: PreTrainedConfig) -> int | None:
    """Tokens that a classifier of images makes of one, its class token among them; None for what reads text."""
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if not isinstance(size, int) or not isinstance(patch, int) or hasattr(config, "vocab_size"):
        return None
    return (size // patch) ** 2 + 1
