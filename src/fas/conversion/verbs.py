"""The two verbs of a conversion: `prepare` (ANN → QCFS model) and `convert` (QCFS model → SNN)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion.atomic import atomic
from fas.conversion.description import describe
from fas.conversion.install import absorb, decoders, install, refuse_prepared, rotate_reader
from fas.conversion.order import measure_order
from fas.conversion.prefix_search import find_prefix, give_prefix
from fas.conversion.scales import Samples, fitted_scale, mean_error, sampled
from fas.errors import ConfigError
from fas.given import Batches, batches_for, config_from, model_from
from fas.models import Placement, Plan, find_segments, note_unknown, planned
from fas.neurons import Site
from fas.neurons.rotation import NO_ROTATION
from fas.offloading import refuse_offloaded
from fas.progress import Progress, progress_from
from fas.runtime.control import clock_of
from fas.runtime.finite import finite_activations, require_finite
from fas.runtime.folding import silence_dropout
from fas.runtime.prefix import Shape, shapes_of

Fit = Callable[[Placement, Samples], Tensor]
Model = TypeVar("Model", bound=PreTrainedModel)


def prepare(
    model: Model,
    config: SpikingConfig | Mapping[str, Any],
    batches: Batches,
    fit: Fit | None = None,
    progress: Progress | bool | None = None,
) -> Model:
    """Turn ``model`` into its QCFS model, in place: Stage 1's starting point, to be trained with any Trainer.

    ``batches`` are keyword arguments of the model (``input_ids`` ``[B, S]`` …) on which the initial scale of every site
    is fitted per channel by least squared error, or by ``fit``: λ ``[C]`` from a site's placement and samples. Raises
    `CheckpointError` for weights, and `DataError` for activations that are not finite, `UnsupportedModelError` for an unknown
    architecture, `ConfigError` for targets or ignored names that match no site and
    `DataError` without batches. Whatever is raised, the model is as it was.
    """
    model_from(model, "fas.prepare")
    config = config_from(config, "fas.prepare")
    refuse_offloaded(model, "fas.prepare")
    refuse_prepared(model)
    progress = progress_from(progress)
    if fit is not None and not callable(fit):
        raise ConfigError(
            f"fas.prepare: fit={fit!r} is not valid; give a function of a placement and its samples, or None"
        )
    batches = batches_for(model, batches, "fas.prepare")
    config.note_if_too_short()
    plan = planned(model, config)
    note_unknown(model, [segment for segment, _ in plan])
    placements = [place for _, places in plan for place in places]
    require_finite(model)
    with atomic(model) as keep:
        with finite_activations(model, "the calibration data"):
            config, shapes = _with_prefix(model, plan, config, batches, progress)
            samples = sampled(model, placements, config, batches, progress)
            fitted = {place.name: _fitted(place, some, config, fit) for place, some in samples}
        keep(_written(placements, config))
        sites = install(model, plan, config, "qcfs", shapes)
        for placement, site in zip(placements, sites, strict=True):
            if site.kind != "group":  # whose λ is the geometry of its function
                _give(placement, site, fitted[site.name], config)
        measure_order(model, sites, batches[0])
        describe(model)
    return model


def _written(placements: Sequence[Placement], config: SpikingConfig) -> Iterator[Tensor]:
    """The weights and biases of readers that sites write to: rotated, and what means are added to."""
    for place in placements:
        for reader in place.consumers if place.spec.kind == "input" else ():
            if place.rotation(config) != NO_ROTATION:
                yield cast(Tensor, reader.weight)
            if isinstance(bias := getattr(reader, "bias", None), Tensor):
                yield bias


@dataclass(frozen=True)
class _Fitted:
    """What a site gets from its samples, per channel ``[C]``."""

    log_scale: Tensor
    center: Tensor | None
    """The mean of its inputs, where it spikes the distances from that."""
    left_out: Tensor | None
    """What the unit leaves out on average of the activation that it stands in for."""


def _fitted(place: Placement, samples: Samples, config: SpikingConfig, fit: Fit | None) -> _Fitted:
    """λ of the site of ``place`` by ``fit``, or of least squared error; and the means that go into the biases behind."""
    center = None
    if place.centers(config):
        center = samples.mean()
        samples = samples.centred(center)
    scale = fit(place, samples) if fit else fitted_scale(place, samples, config.levels, config.scales == "tensor")
    log_scale = scale.log()
    left_out = None
    if place.spec.kind == "input" and place.spec.replaces is not None:
        left_out = mean_error(samples, log_scale.exp(), config.levels, place.spec.signed)
    return _Fitted(log_scale, center, left_out)


def _give(placement: Placement, site: Site, found: _Fitted, config: SpikingConfig) -> None:
    """Give ``site`` its scale and mean, and its readers the weights and biases that go with them."""
    site.log_scale.data.copy_(found.log_scale)
    if site.center is not None and found.center is not None:
        site.center.copy_(found.center)
    for consumer in placement.consumers if site.kind == "input" else ():
        rotate_reader(consumer, placement.rotation(config))
        if site.center is not None:
            absorb(consumer, site.center)
        if found.left_out is not None:
            absorb(consumer, found.left_out)


def fit_site(placement: Placement, site: Site, samples: Samples, config: SpikingConfig) -> None:
    """Fit a ``site`` that was just installed at ``placement``, and its readers, to ``samples`` of the ANN there."""
    if site.kind != "group":
        _give(placement, site, _fitted(placement, samples, config, None), config)


def _with_prefix(
    model: PreTrainedModel,
    plan: Plan,
    config: SpikingConfig,
    batches: Sequence[Mapping[str, Any]],
    progress: Progress,
) -> tuple[SpikingConfig, dict[int, Shape]]:
    """``config`` with the prefix that its decoder has got, found on ``batches`` where it is ``auto``; and its shapes."""
    able = decoders(plan)
    if not able:
        if config.prefix not in ("auto", ()):
            raise ConfigError(f"prefix={config.prefix} is for causal decoders, and {type(model).__name__} has none")
        return config.replaced(prefix=()), {}
    (segment,) = able
    tokens = config.prefix
    if tokens == "auto":
        inside = [place for some, places in plan if some is segment for place in places]
        tokens = find_prefix(model, segment, inside, batches, config, progress).tokens
    if not tokens:
        return config.replaced(prefix=()), {}
    give_prefix(model, segment, tokens)
    return config.replaced(prefix=tuple(tokens)), shapes_of(model)


def convert(model: Model) -> Model:
    """Turn a QCFS model into its SNN, in place: sites become neurons, segments fold time, dropout becomes 0.

    Without `calibrate` the neurons start from θ = λ and v₀ = ½. Raises `FasError` if the model was not prepared.
    """
    model_from(model, "fas.convert", nn.Module)
    clock = clock_of(model)
    require_finite(model)
    with clock.changing("fas.convert"), atomic(model, clock):
        clock.stage = "snn"
        for segment in find_segments(model):
            silence_dropout(segment.module)
        describe(model)
    return model
