"""Spikes that are integers: SpikingBrain's adaptive thresholds, and SpikeLLM's multi-level spikes.

SpikingBrain: V_th = mean |x| / k of each token, count c = round(x / V_th), sent as a train of c spikes of one sign.
SpikeLLM (GIF): v = (x − min)/Δ of each token, Δ = (max − min)/(T·(2ⁿ − 1)); s_t = min(floor v, 2ⁿ − 1), v ← v − s_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fas.methods.method import Method, register
from fas.methods.start import ann_with, one_answer
from fas.neurons import Fired, ones_first

TYPICAL, BITS = 3.0, 2
_LEAST = 1e-12


def adaptive_threshold(x: Tensor, timesteps: int, k: float = TYPICAL) -> Fired:
    """``x`` ``[…, C]`` to (value, spikes ``[T, …, C]`` of −1, 0, 1); counts beyond T are cut."""
    threshold = (x.abs().mean(-1, keepdim=True) / k).clamp(min=_LEAST)
    counts = (x / threshold).round().clamp(-timesteps, timesteps)
    return Fired(counts * threshold, ones_first(counts, timesteps), threshold)


def multi_level(x: Tensor, timesteps: int, bits: int = BITS) -> Fired:
    """``x`` ``[…, C]`` to (value, spikes ``[T, …, C]`` of 0 … 2ⁿ − 1)."""
    most = 2**bits - 1
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    step = ((high - low) / (timesteps * most)).clamp(min=_LEAST)
    left, spikes = (x - low) / step + 0.5, []
    for _ in range(timesteps):
        fired = left.floor().clamp(0, most)
        left = left - fired
        spikes.append(fired)
    trains = torch.stack(spikes)
    return Fired(trains.sum(0) * step + low, trains, step)


register(
    Method(
        "spiking-brain", "SpikingBrain, adaptive threshold", "SpikingBrain 2025: V_th = mean |x| / 3 by token", "control",
        ann_with(lambda site, x, timesteps: adaptive_threshold(x, timesteps)), one_answer, waits=True,
        assumed="counts are cut at T, so that the train fits",
    )
)  # fmt: skip
register(
    Method(
        "spike-llm", "SpikeLLM, multi-level spikes", "Xing et al., ICLR 2025 (GIF): 2 bits a spike, by token", "control",
        ann_with(lambda site, x, timesteps: multi_level(x, timesteps)), one_answer, waits=True,
        assumed="weights stay fp32; no salient channels; a spike of several levels counts as one, and costs as its level",
    )
)  # fmt: skip
