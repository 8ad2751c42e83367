"""GIT: attention over image and text."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.git.modeling_git import GitSelfAttention

from fas.runtime.reclassed.attend import attend, by_heads


class SpikingGitSelfAttention(GitSelfAttention):
    """`GitSelfAttention` through the attention interface."""

    attention_name: str | None = None
    asks = False

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.attention_name is None:
            return super().forward(hidden_states, attention_mask, past_key_values, **kwargs)  # type: ignore[return-value]
        size = self.attention_head_size
        query, key, value = (by_heads(part(hidden_states), size) for part in (self.query, self.key, self.value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        return attend(self, query, key, value, attention_mask, size**-0.5, self.dropout.p)
