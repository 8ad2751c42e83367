"""Fine calibration of one site: θ and v₀ of every channel by gradient, on what the layers that read it make of its error.

The search weighs channels one by one; but errors add up in the layers behind: E‖(a − b)W‖² has the mean error of all channels
together in it, which is what hurts in few timesteps. No layer runs for it: the site's input was recorded once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fas.calibration.coarse import Choice, Search
from fas.models.linear import effective_weight
from fas.neurons import Site

FIT_LR = 1e-2
FIT_ROWS = 128
"""Tokens of one step."""
LEAST_THRESHOLD = 1e-3
"""Of λ: what a gradient may shrink a threshold to."""


@dataclass(frozen=True)
class Reader:
    """What reads a site: the weights ``[C, R]`` of all consumers side by side, or their Gram matrix ``[C, C]`` where that is
    smaller; of an operand of attention the importance ``[C]`` of each channel."""

    weight: Tensor
    gram: bool = False

    def power(self, errors: Tensor) -> Tensor:
        """‖e·W‖² of ``errors`` ``[…, N, C]``, summed over tokens: ``[…]``."""
        if self.weight.ndim == 1:
            return (errors.square() * self.weight).sum((-2, -1))
        read = errors @ self.weight
        return (read * (errors if self.gram else read)).sum((-2, -1))


def reader_of(block: nn.Module, site: Site, importance: Tensor) -> Reader:
    """The reader of ``site`` in ``block``; ``importance`` ``[C]`` where no linear layer reads it."""
    weights = [effective_weight(module, site.width) for module in consumers(block, site)]
    if not weights:
        return Reader(importance)
    if sum(weight.shape[1] for weight in weights) <= site.width:
        return Reader(torch.cat(weights, 1))
    return Reader(sum((weight @ weight.T for weight in weights), torch.zeros((), device=importance.device)), gram=True)


def consumers(block: nn.Module, site: Site) -> list[nn.Module]:
    """The linear layers of ``block`` that read ``site``."""
    return [
        module
        for module in block.modules()
        if any(getattr(hook, "site", None) is site for hook in module._forward_pre_hooks.values())
    ]


def fit(search: Search, start: Choice, reader: Reader, steps: int) -> Choice:
    """``start`` after ``steps`` of Adam on ‖(a_t − b)·W‖², timesteps weighted as in the search, `FIT_ROWS` tokens a step."""
    weights = search.weights()
    order = torch.randperm(len(search.target), generator=torch.Generator().manual_seed(0)).to(search.target.device)
    picks = [picked.split(search.tokens) for picked in order.split(FIT_ROWS)]
    powers = [sum(float(reader.power(search.target[part])) for part in parts) or 1.0 for parts in picks]
    lowest = (search.scale * LEAST_THRESHOLD).log()
    with torch.enable_grad():
        log_threshold = start.threshold.log().detach().requires_grad_()
        v_init = start.v_init.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([log_threshold, v_init], lr=FIT_LR, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        for step in range(steps):
            optimizer.zero_grad()
            for part in picks[step % len(picks)]:
                some = search.only(part)
                given = some.outputs(replace(start, threshold=log_threshold.exp(), v_init=v_init))
                loss = (reader.power(given - some.target) * weights).sum() / powers[step % len(picks)]
                loss.backward()
            optimizer.step()
            schedule.step()
            log_threshold.data.clamp_(min=lowest)
            v_init.data.clamp_(0.0, 1.0)
    return replace(start, threshold=log_threshold.detach().exp(), v_init=v_init.detach())
