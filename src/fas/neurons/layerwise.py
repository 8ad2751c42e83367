"""The layerwise schedule: a layer fires after its whole input window, so its counts are QCFS codes.

The train of a neuron with code c is ones-first: sign(c) in its first |c| timesteps, then silence (T = L).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fas.neurons.integrate_fire import running_time


def ones_first(counts: Tensor, timesteps: int) -> Tensor:
    """Spike trains ``[T, …]`` with Σ_t s_t = ``counts`` (integers with |count| ≤ T)."""
    time = running_time(timesteps, counts.unsqueeze(0))
    return torch.where(counts.abs() >= time, counts.sign(), torch.zeros_like(counts))
