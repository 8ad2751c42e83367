"""STA-style, training-free (Jiang et al., ICLR 2024): bipolar integrate-and-fire, thresholds by MMSE, two sub-steps a timestep.

In each timestep the charge x_t arrives, and the neuron fires twice at most, spikes of ±θ/2. Softmax, norms and activations are
operator groups where the coverage is ``full`` (docs/operators.md), as STA's UGO.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fas.methods.method import Method, register
from fas.methods.start import KEPT, ann_with, mmse_at
from fas.methods.trained import step_rows
from fas.neurons import Fired, Site

BURST = 2


def bursts(charges: Tensor, signed: bool, burst: int = BURST) -> Tensor:
    """``charges`` ``[T, …]`` in units of θ to net spikes of each timestep ``[T, …]``, each worth θ/``burst``."""
    left, found = torch.full_like(charges[0], 0.5 / burst), []
    for charge in charges:
        left, net = left + charge, torch.zeros_like(left)
        for _ in range(burst):
            spike = (left >= 1 / burst).to(left.dtype)
            if signed:
                spike = spike - (left < 0).to(left.dtype)
            left, net = left - spike / burst, net + spike
        found.append(net)
    return torch.stack(found)


def _fire(site: Site, rows: Tensor, timesteps: int) -> Fired:
    threshold = site.scale.to(rows.dtype)
    net = bursts(rows / threshold, site.signed)
    return Fired(net * threshold / BURST, net, threshold / BURST)


register(
    Method(
        "sta", "STA-style, training-free", "Jiang et al., ICLR 2024: MMSE, bipolar IF, burst of 2", "control",
        ann_with(_fire, lambda timesteps: mmse_at(BURST * timesteps)),
        lambda timesteps: step_rows(timesteps) | KEPT,
        assumed="48 candidates of the threshold in the place of 95; a burst of two counts as one, and costs as two",
    )
)  # fmt: skip
