"""LAS (arXiv 2505.09659): FS neurons send a value bit by bit, most significant first, apart for ordinary values and outliers.

FS neuron (Stöckl & Maass 2021), thresholds, resets and weights alike, T_t = h_t = d_t = range · 2^−t, t = 1 … T:

    z_t = [v > T_t],   v ← v − z_t·h_t,   out = Σ_t z_t·d_t

Outlier-aware (OAT): |x| < 10 goes through an FS neuron of range 10, the rest through one of range 500; signs by two copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fas.methods.method import Method, register
from fas.methods.start import ann_with, one_answer
from fas.neurons import Fired

ORDINARY, OUTLIER = 10.0, 500.0


def few_spikes(x: Tensor, reach: Tensor | float, timesteps: int) -> tuple[Tensor, Tensor]:
    """``x`` ≥ 0 of any shape to (what the spikes add up to, spikes ``[T, …]`` of 0 and 1); ``reach``: the range."""
    left, out, spikes = x, torch.zeros_like(x), []
    for t in range(1, timesteps + 1):
        worth = reach * 2.0**-t
        fired = (left > worth).to(x.dtype)
        left, out = left - fired * worth, out + fired * worth
        spikes.append(fired)
    return out, torch.stack(spikes)


def outlier_aware(x: Tensor, timesteps: int) -> Fired:
    """``x`` of any shape and sign to (value, spikes ``[T, …]`` of −1, 0, 1)."""
    size = x.abs()
    reach = torch.where(size < ORDINARY, ORDINARY, OUTLIER)
    value, spikes = few_spikes(size.clamp(max=OUTLIER), reach, timesteps)
    worth = torch.stack([reach * 2.0**-t for t in range(1, timesteps + 1)])
    return Fired(value * x.sign(), spikes * x.sign(), worth)


register(
    Method(
        "las", "LAS, outlier-aware bit-serial", "arXiv 2505.09659: OAT of FS neurons, ranges 10 and 500", "control",
        ann_with(lambda site, x, timesteps: outlier_aware(x, timesteps)), one_answer, waits=True,
        assumed="T bits in the place of 16; one pair of ranges for all tensors; operators as the coverage says",
    )
)  # fmt: skip
