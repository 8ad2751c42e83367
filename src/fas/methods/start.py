"""How methods begin: sites in the untrained ANN, or the QCFS model, as an SNN under a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion import convert, prepare
from fas.conversion.scales import Samples, mmse_scale
from fas.methods.method import Batches, Build, Neuron
from fas.models import Placement
from fas.neurons import Fired, NeuronParameters, Site
from fas.progress import Progress
from fas.runtime.control import clock_of, sites_of

Fit = Callable[[Placement, Samples], Tensor]
"""λ ``[C]`` of a site, from its place and samples."""
Encode = Callable[[Site, Tensor, int], Fired]
"""Of (site, values, T): a `fas.methods.method.Neuron` of any T."""
KEPT = {"activation": "keep"}
"""Without training nothing could learn to do without an activation function."""


def at_once(timesteps: int) -> dict[str, Any]:
    """A layer gives one answer to all of its input; T is its neuron's."""
    return {"schedule": "layerwise"}


def one_answer(timesteps: int) -> dict[str, Any]:
    """The same, without training."""
    return {**at_once(timesteps), **KEPT}


def as_snn(model: PreTrainedModel, config: SpikingConfig) -> PreTrainedModel:
    """A prepared model as SNN under ``config``, uncalibrated."""
    convert(model)
    clock_of(model).config = config
    return model


def from_ann(
    model: PreTrainedModel, config: SpikingConfig, batches: Batches, fit: Fit | None = None
) -> PreTrainedModel:
    """An ANN as SNN under ``config``, thresholds by ``fit`` (`fas.prepare`)."""
    return as_snn(prepare(model, config, batches, fit), config)


def ann_with(encode: Encode, fit: Callable[[int], Fit] | None = None) -> Build:
    """A method without training whose neurons are ``encode``; ``fit``: thresholds for T, else by least squared error."""

    def build(
        model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress
    ) -> Neuron:
        from_ann(model, config, batches, None if fit is None else fit(timesteps))
        return lambda site, x: encode(site, x, timesteps)

    return build


def qcfs_with(encode: Encode) -> Build:
    """A method whose neurons are ``encode`` in the place of the QCFS model's units."""

    def build(
        model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress
    ) -> Neuron:
        as_snn(model, config)
        return lambda site, x: encode(site, x, timesteps)

    return build


def own_parameters(model: PreTrainedModel, config: SpikingConfig) -> dict[str, NeuronParameters]:
    """Fresh neuron parameters (θ = λ, v₀ = ½) of all sites that have thresholds of their own, by name."""
    sites = sites_of(model)
    return {name: site.add_parameters(config.neuron_key) for name, site in sites.items() if site.calibrates}


def largest(samples: Samples, share: float = 1.0) -> Tensor:
    """The ``share`` quantile of each channel's |x| ``[C]``; a silent channel gets the mean of the others."""
    values = torch.cat(samples.inputs).abs()
    found = values.amax(0) if share >= 1 else values.quantile(share, dim=0)
    typical = found.mean().clamp(min=1e-6)
    return torch.where(found > 0, found, typical)


def mmse_at(timesteps: int) -> Fit:
    """Thresholds of least squared error of what T spikes can say."""
    return lambda place, samples: mmse_scale(samples, timesteps, place.spec.signed)
