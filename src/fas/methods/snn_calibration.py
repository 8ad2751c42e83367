"""SNN Calibration, light pipeline (Li et al., ICML 2021): thresholds by MMSE, and biases for what is lacking on average.

Site after site, on calibration data: b ← b + E[ā − s̄] by channel, ā the ANN's value, s̄ the SNN's mean over T. For one value a
channel the shift of the initial potential, v₀ ← v₀ + T·E[ā − s̄], says the same and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.methods.method import Batches, Method, register
from fas.methods.start import KEPT, from_ann, mmse_at, own_parameters
from fas.methods.trained import step_rows
from fas.neurons import Site
from fas.progress import Progress
from fas.runtime.control import clock_of, sites_of, without_cache


@torch.no_grad()
def channel_means(model: PreTrainedModel, batches: Batches, sites: dict[str, Site]) -> dict[str, Tensor]:
    """What each of ``sites`` hands on, by channel ``[C]``, mean over tokens and timesteps."""
    sums = {name: (torch.zeros(site.width, dtype=torch.float64), 0) for name, site in sites.items()}

    def keep(site: Site, args: Any, out: Tensor) -> None:
        total, count = sums[site.name]
        flat = out.detach().flatten(0, -2).double().cpu()
        sums[site.name] = (total + flat.sum(0), count + len(flat))

    handles = [site.register_forward_hook(keep) for site in sites.values()]
    try:
        for batch in batches:
            model(**batch, **without_cache(model))
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / max(1, count)).float() for name, (total, count) in sums.items()}


@contextmanager
def as_ann(model: PreTrainedModel) -> Iterator[None]:
    """All sites let values pass: the ANN, for the length of the context."""
    clock = clock_of(model)
    config, neuron = clock.config, clock.neuron
    clock.config = config.replaced(schedule="layerwise", timesteps=config.levels)
    clock.neuron = lambda site, x: (x, torch.zeros_like(x).unsqueeze(0))
    try:
        yield
    finally:
        clock.config, clock.neuron = config, neuron


def _build(model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress) -> None:
    from_ann(model, config, batches, mmse_at(timesteps))
    entries, sites = own_parameters(model, config), sites_of(model)
    with as_ann(model):
        wanted = channel_means(model, batches, {name: sites[name] for name in entries})
    progress.start("SNN Calibration", len(entries))
    for name, entry in entries.items():
        given = channel_means(model, batches, {name: sites[name]})[name]
        entry.constant.copy_((wanted[name] - given).to(entry.constant.device))
        progress.advance(1)
    progress.done()


register(
    Method(
        "snn-calibration", "SNN Calibration, light", "Li et al., ICML 2021: MMSE thresholds, b + E[ā − s̄]", "control", _build,
        lambda timesteps: step_rows(timesteps) | KEPT, assumed="48 candidates of the threshold in the place of 95",
    )
)  # fmt: skip
