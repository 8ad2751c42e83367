"""COS, offset spikes (Hao et al., ICLR 2023): a residual tells whether a neuron fired too often or too seldom; v₀ mends that.

Units of θ. After a run over the T inputs: if v_T < 0, v₀ falls by max(1, smallest potential of a firing step − 0.999), so that
one spike disappears; if v_T ≥ 1, it rises by max(1, 1.001 − largest potential of a silent step), so that one is added; ρ
rounds. v₀ depends on the input, so it cannot be saved, and a layer waits for its input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fas.methods.method import Method, register
from fas.methods.start import qcfs_with
from fas.methods.trained import step_rows
from fas.neurons import Fired, Site

ROUNDS = 4


def fired(charges: Tensor, start: Tensor, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Integrate-and-fire on ``charges`` ``[T, …]`` from ``start`` (units of θ): spikes and potentials before firing
    ``[T, …]``, and what is left."""
    left, spikes, before = start, [], []
    for charge in charges:
        left = left + charge
        before.append(left)
        spike = (left >= 1).to(left.dtype)
        if signed:
            spike = spike - (left < 0).to(left.dtype)
        left = left - spike
        spikes.append(spike)
    return torch.stack(spikes), torch.stack(before), left


def offset_spikes(charges: Tensor, signed: bool, rounds: int = ROUNDS) -> Tensor:
    """Spikes ``[T, …]`` on ``charges`` ``[T, …]`` (units of θ) after ``rounds`` of mending v₀, which starts at ½."""
    start = torch.full_like(charges[0], 0.5)
    for _ in range(rounds):
        spikes, before, left = fired(charges, start, signed)
        least = before.masked_fill(spikes <= 0, torch.inf).amin(0)
        most = before.masked_fill(spikes > 0, -torch.inf).amax(0)
        down = torch.where(least.isfinite(), (least - 0.999).clamp(min=1), torch.full_like(least, float(signed)))
        up = torch.where(most.isfinite(), (1.001 - most).clamp(min=1), 0)
        wrong = left - (start - 0.5)  # a shift that has moved a spike must not count as charge
        start = torch.where(wrong < 0, start - down, torch.where(wrong >= 1, start + up, start))
    return fired(charges, start, signed)[0]


def _fire(site: Site, rows: Tensor, timesteps: int) -> Fired:
    threshold = site.scale.to(rows.dtype)
    spikes = offset_spikes(rows / threshold, site.signed)
    return Fired(spikes * threshold, spikes, threshold)


register(
    Method(
        "cos", "COS, offset spikes", "Hao et al., ICLR 2023", "qcfs", qcfs_with(_fire), step_rows, waits=True,
        rounds=ROUNDS + 1, assumed="ρ = 4 rounds over the same T inputs, each taken to fire as often",
    )
)  # fmt: skip
