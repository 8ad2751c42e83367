"""Phase coding with fitted bases (multi-granularity phase coding, ICLR 2026): a spike at t is worth less than one before.

    v₀ = |x| + ½·θ_T,   z_t = [v ≥ θ_t],   v ← v − z_t·θ_t,   out = sign(x)·Σ_t z_t·d_t,   θ_t = θ_{t−1}/b_g,   θ₀ = τ/b₀

τ is the largest |x|; each grain g of consecutive timesteps has a base b_g of its own. Bases, and where the second grain begins,
are searched, and the worths d_t fitted by least squares, on samples of each site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion.scales import Samples
from fas.methods.method import Batches, Method, Neuron, register
from fas.methods.start import from_ann, largest, one_answer
from fas.models import Placement
from fas.neurons import Fired, Site
from fas.progress import Progress

BASES = tuple(1.2 + 0.1 * step for step in range(12))
FITTED = 4096
"""Values of a site, relative to τ, that its base and weights are fitted on."""


@dataclass(frozen=True)
class Phases:
    """One site: thresholds, and the worth of a spike in each timestep, as shares of τ ``[T]``."""

    thresholds: tuple[float, ...]
    worth: Tensor


def thresholds_of(bases: Sequence[float], begins: Sequence[int], timesteps: int) -> tuple[float, ...]:
    """θ_t in units of τ: grain g, from timestep ``begins[g]`` on, falls by its base from what the grain before came to.

    >>> thresholds_of([2, 4], [0, 2], 4)
    (0.5, 0.25, 0.0625, 0.015625)
    """
    found, size = [], 1.0
    for t in range(timesteps):
        size /= bases[max(g for g, first in enumerate(begins) if first <= t)]
        found.append(size)
    return tuple(found)


def phase_spikes(x: Tensor, thresholds: Sequence[float]) -> Tensor:
    """``x`` in units of τ, of any shape, to spikes ``[T, …]`` of −1, 0, 1."""
    left, spikes = x.abs() + 0.5 * thresholds[-1], []
    for threshold in thresholds:
        fired = (left >= threshold).to(x.dtype)
        left = left - fired * threshold
        spikes.append(fired * x.sign())
    return torch.stack(spikes)


def fitted(values: Tensor, timesteps: int) -> Phases:
    """The best of `BASES` for ``values`` ``[N]`` in units of τ: one for all timesteps, then another from some timestep on."""
    one = {base: _with_worth(values, (base,), (0,), timesteps) for base in BASES}
    base = min(one, key=lambda base: one[base][0])
    starts = sorted({max(1, timesteps * quarter // 4) for quarter in (1, 2, 3)} - {timesteps})
    two = [_with_worth(values, (base, other), (0, start), timesteps) for start in starts for other in BASES]
    return min([one[base], *two], key=lambda found: found[0])[1]


def _with_worth(values: Tensor, bases: Sequence[float], begins: Sequence[int], timesteps: int) -> tuple[float, Phases]:
    """Squared error, and the site with the worths that make it least."""
    thresholds = thresholds_of(bases, begins, timesteps)
    spikes = phase_spikes(values, thresholds).T.double()
    worth = torch.linalg.lstsq(spikes, values.double().unsqueeze(1), driver="gelsd").solution.squeeze(1)
    return float((spikes @ worth - values).square().mean()), Phases(thresholds, worth.float())


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

    def neuron(site: Site, x: Tensor) -> Fired:
        reach, phases = site.scale.to(x.dtype), sites[site.name]
        spikes = phase_spikes(x / reach, phases.thresholds)
        worth = phases.worth.to(x)
        return Fired(torch.tensordot(worth, spikes, 1) * reach, spikes, worth.view(-1, *(1,) * x.ndim) * reach)

    return neuron


register(
    Method(
        "phase", "phase coding, two grains", "multi-granularity phase coding, ICLR 2026", "control", _build,
        one_answer, waits=True,
        assumed="two grains; bases and grains by search, d by least squares, no descent; τ = max |x| by channel; no rotation",
    )
)  # fmt: skip
