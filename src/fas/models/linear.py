"""Linear layers as FAS can read and change them: a floating-point weight of their own, and the forward of their class."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.pytorch_utils import Conv1D

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PIECE = 1024
"""Inputs that are asked at a time what a layer makes of them."""


def obstacle(module: nn.Module) -> str | None:
    """Why the weight of ``module`` cannot be read and changed in place; None: it can.

    >>> obstacle(nn.Linear(2, 3)), obstacle(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)))
    (None, 'its weight is computed anew in each forward (parametrization, weight norm, pruning)')
    """
    if not isinstance(module, nn.Linear | Conv1D):
        return "it is neither Linear nor Conv1D"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed anew in each forward (parametrization, weight norm, pruning)"
    if weight.dtype not in FLOATS or type(weight) not in (nn.Parameter, Tensor, FakeTensor, *_sharded()):
        return f"its weight is quantized ({type(weight).__name__}, {str(weight.dtype).removeprefix('torch.')})"
    if hasattr(module, "qweight"):  # optimum-quanto, before it is frozen
        return "its weight is quantized in each forward"
    return None


def _sharded() -> tuple[Any, ...]:
    from torch.distributed.tensor import DTensor

    return (DTensor,)


def is_plain(module: nn.Module) -> bool:
    """Whether ``module`` multiplies by its own floating-point weight and does nothing else."""
    return obstacle(module) is None and type(module).forward in (nn.Linear.forward, Conv1D.forward)


def by_input(module: nn.Module) -> Tensor:
    """A view of a plain layer's weight as ``[in, out]`` (``Conv1D`` keeps it so)."""
    weight = cast(Tensor, module.weight)
    return weight if isinstance(module, Conv1D) else weight.T


@torch.no_grad()
def effective_weight(module: nn.Module, width: int) -> Tensor:
    """What ``module`` makes of each of its ``width`` inputs: ``[width, out]``, fp32. Adapters and quantized weights count."""
    if is_plain(module):
        return by_input(module).detach().float()
    like = next((p for p in module.parameters() if p.dtype in FLOATS), torch.zeros(()))
    units = torch.eye(width, dtype=like.dtype, device=like.device)
    forward: Any = module.forward  # hooks would encode the units
    nothing = forward(torch.zeros_like(units[:1]))
    return torch.cat([forward(some) - nothing for some in units.split(PIECE)]).float()
