"""The two verbs of a conversion: `prepare` (ANN → QCFS model) and `convert` (QCFS model → SNN)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion.description import describe
from fas.conversion.install import absorb, install, rotate_reader
from fas.conversion.order import measure_order
from fas.conversion.scales import Samples, fitted_scale, mean_error, sample_inputs
from fas.models import Placement, find_segments, planned
from fas.runtime.control import clock_of
from fas.runtime.folding import silence_dropout

Fit = Callable[[Placement, Samples], Tensor]
Model = TypeVar("Model", bound=PreTrainedModel)


def prepare(model: Model, config: SpikingConfig, batches: Iterable[Mapping[str, Any]], fit: Fit | None = None) -> Model:
    """Turn ``model`` into its QCFS model, in place: Stage 1's starting point, to be trained with any Trainer.

    ``batches`` are keyword arguments of the model (``input_ids`` ``[B, S]`` …) on which the initial scale of every site
    is fitted per channel by least squared error, or by ``fit``: λ ``[C]`` from a site's placement and samples. Raises
    `UnsupportedModelError` for an unknown architecture, `ConfigError` for targets or ignored names that match no site and
    `DataError` without batches, before the model is changed.
    """
    plan, batches = planned(model, config), list(batches)
    placements = [place for _, places in plan for place in places]
    samples = sample_inputs(model, placements, config, batches)
    sites = install(model, plan, config, stage="qcfs")
    for placement, site in zip(placements, sites, strict=True):
        if site.kind != "group":  # whose λ is the geometry of its function
            found = samples[site.name]
            scale = (
                fit(placement, found)
                if fit
                else fitted_scale(placement, found, config.levels, config.scales == "tensor")
            )
            site.log_scale.data.copy_(scale.log())
        if site.kind == "input":
            left_out = mean_error(samples[site.name], site.scale.cpu(), config.levels, site.signed)
            for consumer in placement.consumers:
                rotate_reader(consumer, placement.rotation(config))
                if placement.spec.replaces is not None:
                    absorb(consumer, left_out)
    measure_order(model, sites, batches[0])
    describe(model)
    return model


def convert(model: Model) -> Model:
    """Turn a QCFS model into its SNN, in place: sites become neurons, segments fold time, dropout becomes 0.

    Without `calibrate` the neurons start from θ = λ and v₀ = ½. Raises `FasError` if the model was not prepared.
    """
    clock = clock_of(model)
    clock.stage = "snn"
    for segment in find_segments(model):
        silence_dropout(segment.module)
    describe(model)
    return model
