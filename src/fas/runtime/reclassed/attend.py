"""What the reclassed modules share: their products, by the implementation that was chosen."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Output ``[B, S, H·D]`` and probabilities of ``query``, ``key``, ``value`` ``[B, H, S, D]``; ``mask`` is additive."""
    function = ALL_ATTENTION_FUNCTIONS[module.attention_name]
    out, shares = function(module, query, key, value, mask, scaling=scaling, dropout=dropout)
    return out.flatten(2), shares


def by_heads(x: Tensor, features: int) -> Tensor:
    """``[B, S, H·D]`` as ``[B, H, S, D]`` with D = ``features``."""
    return x.unflatten(-1, (-1, features)).transpose(1, 2)
