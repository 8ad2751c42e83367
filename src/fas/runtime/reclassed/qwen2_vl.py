"""Qwen2-VL's vision tower: the patches of all images are packed in one sequence, and each image attends to itself.

The interface is asked once for every image there; a site needs all rows of its tensor at once, so here images are the rows of
a batch, padded to the longest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention, apply_rotary_pos_emb_vision

from fas.runtime.reclassed.attend import attend


class SpikingVisionAttention(VisionAttention):
    """`VisionAttention` with a row for every image (in folded time: for every image and timestep)."""

    attention_name: str | None = None
    asks = True

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if self.attention_name is None:
            return super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
        assert position_embeddings is not None
        lengths = cu_seqlens.diff()
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        query, key, value = (_rows(x, lengths.tolist()) for x in (query, key, value))
        real = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        out, _ = attend(self, query, key, value, _mask(real, hidden_states), self.scaling)
        return self.proj(out[real])


def _rows(packed: Tensor, lengths: list[int]) -> Tensor:
    """``[patches, H, D]`` as ``[images, H, S, D]``, padded with zeros."""
    return pad_sequence(list(packed.split(lengths)), batch_first=True).transpose(1, 2)


def _mask(real: Tensor, like: Tensor) -> Tensor | None:
    """Additive mask ``[images, 1, S, S]`` that hides padding, as key and as query; None where there is none."""
    if bool(real.all()):
        return None
    seen = real[:, None, :, None] & real[:, None, None, :]
    hidden = torch.finfo(like.dtype).min
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, hidden)
