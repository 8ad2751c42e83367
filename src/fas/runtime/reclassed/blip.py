"""BLIP: the vision tower's attention with one fused projection, and the text model's with its caches and the image's keys."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from fas.runtime.reclassed.attend import attend, by_heads


class SpikingBlipAttention(BlipAttention):
    """`BlipAttention` through the attention interface."""

    attention_name: str | None = None
    asks = False

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.attention_name is None:
            return super().forward(hidden_states, **kwargs)
        query, key, value = (by_heads(x, self.head_dim) for x in self.qkv(hidden_states).chunk(3, dim=-1))
        out, shares = attend(self, query, key, value, None, self.scale, self.dropout.p)
        return self.projection(out), shares


class SpikingBlipTextSelfAttention(BlipTextSelfAttention):
    """`BlipTextSelfAttention` through the attention interface; with an image's states it is cross-attention."""

    attention_name: str | None = None
    asks = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        if self.attention_name is None:
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, past_key_values, **kwargs
            )
        crosses, size = encoder_hidden_states is not None, self.attention_head_size
        query = by_heads(self.query(hidden_states), size)
        key, value = self._keys(encoder_hidden_states if crosses else hidden_states, crosses, past_key_values)
        mask = encoder_attention_mask if crosses else attention_mask
        return attend(self, query, key, value, mask, size**-0.5, self.dropout.p)

    def _keys(self, states: Any, crosses: bool, cache: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of ``states``, with those that the cache holds; those of an image are made once."""
        both = isinstance(cache, EncoderDecoderCache)
        own = cache if not both else cache.cross_attention_cache if crosses else cache.self_attention_cache
        if crosses and both and cache.is_updated.get(self.layer_idx):
            layer: Any = own.layers[self.layer_idx]  # type: ignore[index]
            return layer.keys, layer.values
        key, value = (by_heads(project(states), self.attention_head_size) for project in (self.key, self.value))
        if own is not None:
            key, value = own.update(key, value, self.layer_idx)  # type: ignore[arg-type]
            if crosses and both:
                cache.is_updated[self.layer_idx] = True
        return key, value
