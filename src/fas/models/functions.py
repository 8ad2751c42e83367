"""The nonlinear functions inside a segment that coverage ``full`` computes by groups: which module is which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from torch import nn

from fas.errors import UnsupportedModelError
from fas.operators import Group, activation_group, exp2_group, reciprocal_group, rsqrt_group

# by the class's name; relu is a comparison, which needs no group
ACTIVATIONS = {
    "GELUActivation": "gelu", "GELU": "gelu", "AccurateGELUActivation": "gelu_tanh", "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh", "GELUTanh": "gelu_tanh", "QuickGELUActivation": "quick_gelu", "SiLU": "silu",
    "SiLUActivation": "silu", "Tanh": "tanh", "Sigmoid": "sigmoid",
}  # fmt: skip
COMPARISONS = ("ReLU", "Identity")


@dataclass(frozen=True)
class Norm:
    """What a norm computes: ``centered`` (LayerNorm) or not (RMSNorm), and the ``offset`` that its weight adds to."""

    centered: bool
    offset: float = 0.0


def norm_of(module: nn.Module) -> Norm | None:
    """The norm that ``module`` is, by its class; None for any other module.

    >>> norm_of(nn.LayerNorm(4)), norm_of(nn.Linear(1, 1))
    (Norm(centered=True, offset=0.0), None)
    """
    name = type(module).__name__
    if name == "LayerNorm":
        return Norm(centered=True)
    if name.endswith("RMSNorm") or name == "T5LayerNorm":
        return Norm(centered=False, offset=1.0 if name.startswith("Gemma") else 0.0)
    return None


def known_norm_of(name: str, module: nn.Module) -> Norm | None:
    """As `norm_of`; raises `UnsupportedModelError` for a norm, by its class's name, that no group computes."""
    norm, kind = norm_of(module), type(module).__name__
    if norm is None and "Norm" in kind and not kind.startswith("Spiking") and not any(True for _ in module.children()):
        raise UnsupportedModelError(
            f"{name} is a {kind}, a norm that no groups of neurons compute (they do LayerNorm and RMSNorm); choose "
            "coverage='attention'"
        )
    return norm


def epsilon(module: nn.Module) -> float:
    """The ε of a norm, whatever its family calls it."""
    return float(getattr(module, "variance_epsilon", None) or module.eps)  # type: ignore[arg-type]


def activation_of(name: str, module: nn.Module) -> str | None:
    """The kind of group that computes the activation ``module``; None where a comparison is enough.

    Raises `UnsupportedModelError` for an activation without a group.
    """
    kind = type(module).__name__
    if kind in COMPARISONS:
        return None
    if kind not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{name} is a {kind}, for which there is no group of neurons (there are for {', '.join(ACTIVATIONS)}); choose "
            "coverage='attention'"
        )
    return ACTIVATIONS[kind]


# Many neurons of few levels follow an argument that still moves; few of many would lag (docs/operators.md). Of one level
# they never lag, which makes them cheap to simulate; the exponential runs for every score.
LEVELS = {"exponential": 1, "activation": 1}
OTHER_LEVELS = 2
FUNCTIONS: dict[str, Callable[[], Group]] = {
    "exponential": lambda: exp2_group(16, evenness=1e9),  # equally wide neurons: one table holds all values
    "reciprocal": lambda: reciprocal_group(16),
    "rsqrt": lambda: rsqrt_group(16),
    "softcap": lambda: activation_group("tanh", 16),
}


def group_for(role: str, module: nn.Module) -> Group:
    """The fitted group of a site of kind ``group``: by its role, or that of the activation ``module``."""
    return _fitted(role if role in FUNCTIONS else ACTIVATIONS[type(module).__name__])


@cache
def _fitted(name: str) -> Group:
    """The group of a function or an activation: fitted once, for a model has as many as norms and softmaxes."""
    return FUNCTIONS[name]() if name in FUNCTIONS else activation_group(name, 16)  # type: ignore[arg-type]
