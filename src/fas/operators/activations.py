"""Activations by groups over |x|: what grows without bound is a comparison (relu), what is left is bounded and vanishes.

GELU, its tanh form, QuickGELU and SiLU are f(x) = x·Φ(x) with Φ(−x) = 1 − Φ(x), so f(x) = relu(x) + c(|x|) with
c(a) = −a·Φ(−a). tanh is odd and so is sigmoid − ½.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fas.errors import FasError
from fas.operators.fit import Function, fit_group
from fas.operators.group import Evaluation, Group, wide
from fas.operators.regions import operator

Kind = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid"]


@dataclass(frozen=True)
class _Shape:
    """What a group computes of a = |x|: ``part`` on [0, ``reach``], constant from there on; 0 at 0 in every kind."""

    part: Function
    reach: float
    gated: bool


def _gelu_tanh_cdf(a: Tensor) -> Tensor:
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))) / 2


_SHAPES: dict[str, _Shape] = {
    "gelu": _Shape(lambda a: -a * torch.special.ndtr(-a), 4, gated=True),
    "gelu_tanh": _Shape(lambda a: -a * _gelu_tanh_cdf(-a), 4, gated=True),
    "quick_gelu": _Shape(lambda a: -a * torch.sigmoid(-1.702 * a), 5, gated=True),
    "silu": _Shape(lambda a: -a * torch.sigmoid(-a), 8.5, gated=True),
    "tanh": _Shape(torch.tanh, 3.5, gated=False),
    "sigmoid": _Shape(lambda a: torch.sigmoid(a) - 0.5, 7, gated=False),
}


def activation_group(kind: Kind, neurons: int = 12, **fitting: float) -> Group:
    """Of `activation`: one readout, on [0, reach]; ``fitting`` as in `fit_group`. Raises `FasError` for an unknown kind."""
    shape = _shape(kind)
    # f(0) is exact: no jump where x changes its sign
    return fit_group([shape.part], 0, shape.reach, neurons, offset=0, **fitting)


@operator
def activation(x: Tensor, group: Evaluation, kind: Kind) -> Tensor:
    """The activation ``kind`` of ``x`` (any shape), in fp32 or wider. Raises `FasError` for an unknown kind."""
    shape, x = _shape(kind), wide(x)
    part = group(x.abs()).squeeze(-1)
    if shape.gated:
        return x.relu() + part
    part = torch.where(x < 0, -part, part)
    return part + 0.5 if kind == "sigmoid" else part


def _shape(kind: str) -> _Shape:
    if kind not in _SHAPES:
        raise FasError(f"no group computes the activation {kind!r}; there are groups for {', '.join(get_args(Kind))}")
    return _SHAPES[kind]
