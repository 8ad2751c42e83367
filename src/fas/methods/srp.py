"""SRP, residual potentials (Hao et al., AAAI 2023): who ended below zero in a first run should have been silent, and is.

τ timesteps of the whole network run first, v₀ = θ/2; neurons whose residual is at most 10⁻³ θ are silenced; then T run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.methods.cos import fired
from fas.methods.method import Batches, Method, Neuron, register
from fas.methods.start import as_snn
from fas.methods.trained import step_rows
from fas.neurons import Fired, Site
from fas.progress import Progress
from fas.runtime.control import at_time, clock_of

FIRST, LEAST = 4, 1e-3


class Silenced:
    """The neuron of both runs, and the hook that runs the first one before each call of the model."""

    def __init__(self) -> None:
        self.first = False
        self.speaks: dict[str, Tensor] = {}

    def __call__(self, site: Site, rows: Tensor) -> Fired:
        """Step rows ``[T, B, …, C]`` to output rows and spikes of the same shape."""
        threshold = site.scale.to(rows.dtype)
        charges = rows / threshold
        spikes, _, left = fired(charges, torch.full_like(charges[0], 0.5), site.signed)
        if self.first:
            self.speaks[site.name] = left > LEAST
        else:
            spikes = spikes * self.speaks[site.name]
        return Fired(spikes * threshold, spikes, threshold)

    @torch.no_grad()
    def run_first(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of ``model``."""
        if self.first:
            return
        clock = clock_of(model)
        probe, clock.probe = clock.probe, None  # a recording is of one length
        self.first = True
        try:
            # who counts operations sees the other T timesteps; `Method.spent` says what all take
            with _disable_current_modes(), at_time(model, timesteps=FIRST):
                model(*args, **kwargs)
        finally:
            self.first, clock.probe = False, probe


def _build(
    model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress
) -> Neuron:
    as_snn(model, config)
    neuron = Silenced()
    model.register_forward_pre_hook(neuron.run_first, with_kwargs=True)  # type: ignore[arg-type]
    return neuron


register(
    Method(
        "srp", "SRP, residual potentials", "Hao et al., AAAI 2023", "qcfs", _build, step_rows, before=FIRST,
        assumed="τ = 4; the first run is taken to fire as often as the second",
    )
)  # fmt: skip
