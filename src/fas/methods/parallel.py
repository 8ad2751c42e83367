"""Parallel spiking neuron (Hao et al., ICML 2025, arXiv 2412.13610): a layer decides on all of its T inputs at once.

With the whole charge q of T timesteps a neuron fires at t if q + v₀ ≥ t·θ, v₀ = θ/2: its spikes are sorted, and their number is
clip(floor(q/θ + ½), 0, T), the QCFS code of L = T (of both signs where the site is signed).
"""

from __future__ import annotations

from torch import Tensor

from fas.methods.method import Method, register
from fas.methods.start import at_once, qcfs_with
from fas.neurons import Fired, Site, codes, ones_first


def parallel_spikes(x: Tensor, threshold: Tensor, timesteps: int, signed: bool) -> Fired:
    """Mean input ``x`` ``[…, C]`` and θ ``[C]`` (what T spikes are worth together) to (θ·N/T, spikes ``[T, …, C]``)."""
    counts = codes(x, threshold, timesteps, signed)
    return Fired(counts * threshold / timesteps, ones_first(counts, timesteps), threshold / timesteps)


def _fire(site: Site, x: Tensor, timesteps: int) -> Fired:
    return parallel_spikes(x, site.scale.to(x.dtype), timesteps, site.signed)


register(
    Method(
        "parallel", "parallel spiking neuron", "Hao et al., ICML 2025: S = [Λ I ≥ θ − b]", "qcfs", qcfs_with(_fire), at_once,
        waits=True, assumed="thresholds of Stage 1; DA-QCFS' learned shift and bias are left out",
    )
)  # fmt: skip
