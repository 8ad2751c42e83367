"""How far one run of a model is from another: what Stage 1 distils with and Stage 2 minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def logits_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) in nats, times temperature², mean over tokens; logits ``[B, S, V]``."""
    log_p = F.log_softmax(teacher.float().flatten(0, -2) / temperature, dim=-1)
    log_q = F.log_softmax(student.float().flatten(0, -2) / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def alignment(spiking: Tensor, target: Tensor) -> Tensor:
    """Activation-align loss: squared error of a layer's readout relative to its target's mean square (dimensionless)."""
    target = target.float()
    return (spiking.float() - target).square().mean() / target.square().mean().clamp(
        min=torch.finfo(torch.float32).tiny
    )
