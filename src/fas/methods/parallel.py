"""Parallel spiking neuron (Hao et al., ICML 2025, arXiv 2412.13610): a layer decides on all of its T inputs at once.

With the whole charge q of T timesteps a neuron fires at t if q + v₀ ≥ t·θ, v₀ = θ/2: its spikes are sorted, and their number is
clip(floor(q/θ + ½), 0, T), the QCFS code of L = T (of both signs where the site is signed).
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.methods.method import Batches, Method, Neuron, register
from fas.methods.start import as_snn, at_once
from fas.neurons import Site, codes, ones_first
from fas.progress import Progress


def parallel_spikes(x: Tensor, threshold: Tensor, timesteps: int, signed: bool) -> tuple[Tensor, Tensor]:
    """Mean input ``x`` ``[…, C]`` and θ ``[C]`` (what T spikes are worth together) to (θ·N/T, spikes ``[T, …, C]``)."""
    counts = codes(x, threshold, timesteps, signed)
    return counts * threshold / timesteps, ones_first(counts, timesteps)


def _build(
    model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress
) -> Neuron:
    as_snn(model, config)

    def neuron(site: Site, x: Tensor) -> tuple[Tensor, Tensor]:
        return parallel_spikes(x, site.scale.to(x.dtype), timesteps, site.signed)

    return neuron


register(
    Method(
        "parallel", "parallel spiking neuron", "Hao et al., ICML 2025: S = [Λ I ≥ θ − b]", "qcfs", _build, at_once, waits=True,
        assumed="thresholds of Stage 1; DA-QCFS' shift and bias, which are 0 for T = L, are left out",
    )
)  # fmt: skip
