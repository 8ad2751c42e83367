"""The optimizer of Stage 1: scales have a learning rate of their own."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

OF_SITES = ("log_scale", "log_threshold", "v_init")
"""Parameters of sites: relative to their scale, so their learning rate is not that of weights."""


class Rates(Protocol):
    """Learning rates of weights and of parameters of sites, and the weight decay of weights."""

    @property
    def lr(self) -> float: ...

    @property
    def scale_lr(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...


def adamw(module: nn.Module, rates: Rates) -> torch.optim.AdamW:
    """AdamW for what is trained of ``module``, with the parameters of sites in a group of their own, without weight decay."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    scales = [p for name, p in named if name.endswith(OF_SITES)]
    weights = [p for name, p in named if not name.endswith(OF_SITES)]
    groups = [{"params": weights, "lr": rates.lr, "weight_decay": rates.weight_decay}]
    if scales:
        groups.append({"params": scales, "lr": rates.scale_lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))
