"""A population: P neurons that together hold one value, the group operator of the identity.

Neuron i of a channel covers |x| from corner_i to corner_i + λ_i and carries the sign of x: like those of any group, the neurons
below are saturated and those above silent, so P neurons of L levels resolve P·L levels. It encodes the input of a norm,
whose own output is encoded once more: two equally coarse grids in a row would double the error of the residual stream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fas.neurons import Clock
from fas.operators.group import wide
from fas.operators.spiking import GroupSite

NEURONS = 8
LEVELS = 8


class Population(nn.Module):
    """Encodes ``[…, C]`` by a site of ``width`` P·C whose λ are the widths of the segments (fp32 or wider)."""

    def __init__(
        self,
        name: str,
        width: int,
        clock: Clock,
        order: int = 0,
        device: torch.device | None = None,
        neurons: int = NEURONS,
        levels: int = LEVELS,
    ) -> None:
        super().__init__()
        self.neurons = neurons
        self.site = GroupSite(
            name, width, signed=True, consumers=1, clock=clock, order=order, kind="norm", device=device
        )
        self.site.own_levels = levels

    def forward(self, x: Tensor) -> Tensor:
        x = wide(x)
        widths = self.site.scale.to(x.dtype).unflatten(0, (self.neurons, -1))  # [P, C]
        corners = widths.cumsum(0) - widths
        magnitude = (x.abs().unsqueeze(-2) - corners).clamp(min=0)
        held = torch.minimum(magnitude, widths) * x.sign().unsqueeze(-2)
        return self.site(held.flatten(-2)).unflatten(-1, (self.neurons, -1)).sum(-2)
