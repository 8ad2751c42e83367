"""A population: P neurons that together hold one value, the group operator of the identity.

Neuron i of a channel covers |x| from corner_i to corner_i + λ_i and carries the sign of x: like those of any group, the neurons
below are saturated and those above silent, so P neurons of L levels resolve P·L levels. It encodes the input of a norm,
whose own output is encoded once more: two equally coarse grids in a row would double the error of the residual stream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fas.neurons import Site
from fas.operators.group import wide

NEURONS = 4


class Population(nn.Module):
    """``site`` has width P·C, its λ ``[P·C]`` are the widths of the segments; maps ``[…, C]`` to the encoded ``[…, C]``."""

    def __init__(self, site: Site, neurons: int = NEURONS) -> None:
        super().__init__()
        self.site, self.neurons = site, neurons

    def forward(self, x: Tensor) -> Tensor:
        x = wide(x)
        widths = self.site.scale.to(x.dtype).unflatten(0, (self.neurons, -1))  # [P, C]
        corners = widths.cumsum(0) - widths
        magnitude = (x.abs().unsqueeze(-2) - corners).clamp(min=0)
        held = torch.minimum(magnitude, widths) * x.sign().unsqueeze(-2)
        return self.site(held.flatten(-2)).unflatten(-1, (self.neurons, -1)).sum(-2)
