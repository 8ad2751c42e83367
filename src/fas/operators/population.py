"""A population: neurons that together hold one value, the group operator of the identity.

P neurons (ON) cover x from i·λ to (i+1)·λ, and P more (OFF) cover −x: like those of any group, the neurons below are saturated
and those above silent, so P neurons of L levels resolve P·L levels, and of one level none lags behind. (A signed neuron would,
where x changes its sign: from −1 to +1 are two spikes.) It encodes the input of a norm, whose own output is encoded once
more: a neuron that lags there would hold up everything behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fas.neurons import Clock, Held, qcfs
from fas.neurons.held import dtype_for
from fas.neurons.qcfs import codes
from fas.offloading import at_hand
from fas.operators.group import wide
from fas.operators.spiking import GroupSite

NEURONS = 16
LEVELS = 1


class PopulationSite(GroupSite):
    """The site of a population of ``neurons`` ON and as many OFF a channel: ``log_scale`` ``[C]``, one λ a channel."""

    def __init__(
        self, name: str, channels: int, clock: Clock, order: int, device: torch.device | None, neurons: int
    ) -> None:
        width = 2 * neurons * channels
        super().__init__(name, width, signed=False, consumers=1, clock=clock, order=order, kind="norm", device=device)
        self.neurons_each = neurons
        self.channels = channels
        values = 1 if clock.config.scales == "tensor" else channels
        self.log_scale = nn.Parameter(torch.zeros(values, dtype=torch.float32, device=device))

    @property
    def scale(self) -> Tensor:
        """λ of every neuron ``[2·P·C]``."""
        scale: Tensor = at_hand(self, "log_scale")
        return scale.exp().expand(self.channels).repeat(2 * self.neurons_each)


class Population(nn.Module):
    """Encodes ``[…, C]`` by a `PopulationSite` of 2·P·C neurons (fp32 or wider)."""

    def __init__(
        self, name: str, channels: int, clock: Clock, order: int = 0, device: torch.device | None = None,
        neurons: int = NEURONS, levels: int = LEVELS,
    ) -> None:  # fmt: skip
        super().__init__()
        self.neurons = neurons
        self.site = PopulationSite(name, channels, clock, order, device, neurons)
        self.site.own_levels = levels

    def forward(self, x: Tensor) -> Tensor:
        x, site = wide(x), self.site
        if isinstance(site, PopulationSite) and site.rests():
            scale, levels = at_hand(site, "log_scale").exp().to(x.dtype) * self.neurons, self.neurons * site.levels
            if site.clock.probe is not None and site.clock.folds:
                number = codes(site.over_time(x.detach()), scale.detach(), levels, signed=True)
                number = number.to(dtype_for(self.neurons))
                site.tell_held(Held(number, self.neurons, signed=True), None)
            return qcfs(x, scale, levels, signed=True)
        widths = site.scale.to(x.dtype).unflatten(0, (2, self.neurons, -1))  # [2, P, C]
        corners = widths.cumsum(1) - widths
        both = torch.stack([x, -x], dim=-2).unsqueeze(-2)  # [..., 2, 1, C]
        held = torch.minimum((both - corners).clamp(min=0), widths)
        on, off = site(held.flatten(-3)).unflatten(-1, (2, self.neurons, -1)).sum(-2).unbind(-2)
        return on - off
