"""Phase coding with fitted bases (after multi-granularity phase coding, ICLR 2026): a spike at t is worth less than one before.

    v₀ = |x| + ½·τ·b^−T,   z_t = [v ≥ τ·b^−(t+1)],   v ← v − z_t·τ·b^−(t+1),   out = sign(x)·Σ_t z_t·d_t,   t = 0 … T − 1

τ is the largest |x|, the base b and the weights d_t of each site are fitted on samples: b by a search, d by least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion.scales import Samples
from fas.methods.method import Batches, Method, Neuron, register
from fas.methods.start import from_ann, largest, one_answer
from fas.models import Placement
from fas.neurons import Site
from fas.progress import Progress

BASES = tuple(1.2 + 0.1 * step for step in range(12))
FITTED = 4096
"""Values of a site, relative to τ, that its base and weights are fitted on."""


@dataclass(frozen=True)
class Phases:
    """One site: base b, and the worth of a spike in each timestep as a share of τ ``[T]``."""

    base: float
    worth: Tensor


def phase_spikes(x: Tensor, base: float, timesteps: int) -> Tensor:
    """``x`` in units of τ, of any shape, to spikes ``[T, …]`` of −1, 0, 1."""
    left, spikes = x.abs() + 0.5 * base**-timesteps, []
    for t in range(timesteps):
        threshold = base ** -(t + 1)
        fired = (left >= threshold).to(x.dtype)
        left = left - fired * threshold
        spikes.append(fired * x.sign())
    return torch.stack(spikes)


def fitted(values: Tensor, timesteps: int) -> Phases:
    """The best of `BASES` for ``values`` ``[N]`` in units of τ, each with the weights of least squared error."""
    best, least = None, float("inf")
    for base in BASES:
        spikes = phase_spikes(values, base, timesteps).T.double()
        worth = torch.linalg.lstsq(spikes, values.double().unsqueeze(1), driver="gelsd").solution.squeeze(1)
        error = float((spikes @ worth - values).square().mean())
        if error < least:
            best, least = Phases(base, worth.float()), error
    assert best is not None
    return best


def _build(
    model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress
) -> Neuron:
    sites: dict[str, Phases] = {}

    def fit(place: Placement, samples: Samples) -> Tensor:
        reach = largest(samples)
        values = (torch.cat(samples.inputs) / reach).flatten()
        sites[place.name] = fitted(values[:: max(1, len(values) // FITTED)], timesteps)
        return reach

    from_ann(model, config, batches, fit)

    def neuron(site: Site, x: Tensor) -> tuple[Tensor, Tensor]:
        reach, phases = site.scale.to(x.dtype), sites[site.name]
        spikes = phase_spikes(x / reach, phases.base, timesteps)
        return torch.tensordot(phases.worth.to(x), spikes, 1) * reach, spikes

    return neuron


register(
    Method(
        "phase", "phase coding, fitted bases", "multi-granularity phase coding, ICLR 2026 (peers 1.10)", "control", _build,
        one_answer, waits=True,
        assumed="one grain a site; b by search, d by least squares, not by the alternating fit; τ = max |x| by channel",
    )
)  # fmt: skip
