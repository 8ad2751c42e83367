"""How far one run of a model is from another: what Stage 1 distils with and Stage 2 minimises."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

TOKENS = 64
"""Whose distributions are there together: those of a whole vocabulary are large, so the way back computes them again."""


def better(new: float, old: float) -> bool:
    """Whether a loss is smaller than another; one that is no number is worse than any.

    >>> better(1.0, 2.0), better(float("nan"), 2.0), better(2.0, float("nan"))
    (True, False, True)
    """
    return new < old or (math.isnan(old) and not math.isnan(new))


def comparable(loss: float) -> float:
    """A loss to choose by: infinity for one that is no number.

    >>> min(comparable(float("nan")), comparable(2.0))
    2.0
    """
    return math.inf if math.isnan(loss) else loss


def logits_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`logits_kl`, or the mean squared error of a regression, which has one logit."""
    if student.shape[-1] == 1:
        return F.mse_loss(student.float(), teacher.float())
    return logits_kl(student, teacher, temperature)


def logits_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) in nats, times temperature², mean over tokens or examples; logits ``[…, V]``."""
    total = torch.zeros((), device=student.device)
    student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    for given, wanted in zip(student.split(TOKENS), teacher.split(TOKENS), strict=True):
        total = total + checkpoint(_summed_kl, given, wanted, temperature, use_reentrant=False)
    return total / len(student) * temperature**2


def _summed_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_p, log_q = (F.log_softmax(logits.float() / temperature, dim=-1) for logits in (teacher, student))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def alignment(spiking: Tensor, target: Tensor) -> Tensor:
    """Activation-align loss: squared error of a layer's readout relative to its target's mean square (dimensionless)."""
    target = target.float()
    return (spiking.float() - target).square().mean() / target.square().mean().clamp(
        min=torch.finfo(torch.float32).tiny
    )


def logits_of(outputs: Any) -> Tensor:
    """What a model predicts: its logits, or those of images against texts ``[images, texts]``."""
    return outputs.logits_per_image if "logits_per_image" in outputs else outputs.logits
