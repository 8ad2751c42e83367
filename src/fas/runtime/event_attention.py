"""Attention products of the event executor, updated by increments instead of computed anew (DESIGN §3, §5).

With increments q_t = Q_t − Q_{t−1} and k_t = K_t − K_{t−1}, the product of two running values is

    Q_t K_tᵀ = Q_{t−1} K_{t−1}ᵀ + Q_t k_tᵀ + q_t K_{t−1}ᵀ

and the output likewise, from probabilities and values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from fas.errors import FasError

NAME = "fas_events"

# Arguments that change what attention computes; leaving one out would be silent nonsense.
_UNKNOWN = ("position_bias", "s_aux", "sinks")


class RunningProduct:
    """A_t·B_t of two running values, carried through time."""

    def __init__(self) -> None:
        self.past: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """Product at this timestep; ``left`` ``[…, M, K]`` and ``right`` ``[…, K, N]`` are the running values."""
        if self.past is None:
            product = left @ right
        else:
            last_left, last_right, last_product = self.past
            product = last_product + left @ (right - last_right) + (left - last_left) @ last_right
        self.past = (left, right, product)
        return product


class RunningAttention:
    """State of one attention module: its scores and its output as running products."""

    def __init__(self) -> None:
        self.scores, self.output = RunningProduct(), RunningProduct()


def start(model: nn.Module) -> None:
    """Forget all products, before the first timestep (before every one where rows carry single steps)."""
    for module in model.modules():
        module.__dict__.pop("_running_attention", None)


def has_run(model: nn.Module) -> bool:
    """Whether any attention module of ``model`` has computed its products here."""
    return any("_running_attention" in module.__dict__ for module in model.modules())


def event_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Transformers' contract: ``query`` ``[B, H, S, D]``, keys and values ``[B, Hkv, S, D]`` to ``[B, S, H, D]``.

    ``dropout`` is 0 wherever time is simulated. Raises `FasError` for an argument that it would have to ignore.
    """
    ignored = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if ignored:
        raise FasError(f"{type(module).__name__} uses {ignored}, which the event executor does not compute")
    state: RunningAttention = module.__dict__.setdefault("_running_attention", RunningAttention())
    groups = query.shape[1] // key.shape[1]
    key, value = (entry.repeat_interleave(groups, dim=1) for entry in (key, value))
    scores = state.scores(query, key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if attention_mask is None:
        probabilities = _softmax(scores)
    else:
        # a padding token sees nothing at all: its probabilities are 0, as in scaled_dot_product_attention
        hidden = attention_mask == torch.finfo(attention_mask.dtype).min
        probabilities = _softmax(scores + attention_mask).masked_fill(hidden, 0)
    return state.output(probabilities, value).transpose(1, 2).contiguous(), probabilities


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


AttentionInterface.register(NAME, event_attention)
AttentionMaskInterface.register(NAME, eager_mask)  # without a mask function of its own, attention would see the future
