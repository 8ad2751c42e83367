"""Writing one token after another on a CPU: caches with room for more, and attention that reads them where they lie.

A cache of T timesteps is T times the ANN's, and transformers copies it for each token. Here a layer's keys and values stand in
a buffer with room behind them; a new token is written there, and a compiled kernel reads it in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from fas.neurons.native import kernels
from fas.neurons.native.decoding import attend, attends
from fas.runtime.attention import spiking_attention
from fas.runtime.held_still import HeldStill
from fas.runtime.prefix import BASES, PREFIXED, ordinary_attention, prefix_of

PREFIX = "fas_decoding_"
KNOWN = (*BASES, *(PREFIXED + base for base in BASES))
_PLAIN = frozenset({"is_causal", "position_ids", "cache_position", "use_cache", "dropout", "scaling", "sliding_window"})
"""Arguments that change nothing for one token whose mask is given."""
ROOM = 32
"""Tokens of room, or a quarter of what there is."""


@contextmanager
def attention_in_place(model: nn.Module) -> Iterator[None]:
    """Inside, analog attention of single tokens reads caches in place; all other attention is as it was."""
    configs = {id(config): config for part in model.modules() if (config := getattr(part, "config", None)) is not None}
    changed = []
    for config in configs.values():
        chosen = getattr(config, "_attn_implementation_internal", None)
        if chosen in KNOWN:
            changed.append((config, chosen))
            config._attn_implementation_internal = PREFIX + chosen
    try:
        yield
    finally:
        for config, chosen in changed:
            config._attn_implementation_internal = chosen


def _implementation(chosen: str) -> Any:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        one = query.shape[2] == 1 and not module.training and not torch.is_grad_enabled() and kernels.takes(query)
        strange = any(value is not None and name not in _PLAIN for name, value in kwargs.items())
        strange = strange or getattr(getattr(module, "config", None), "output_attentions", False)  # wants the weights
        parts = None if not one or strange else _parts(module, query, key, value, attention_mask)
        if parts is None:
            ordinary = ordinary_attention(module, chosen) or spiking_attention
            return ordinary(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
        one_query, key, value, hidden, fresh, front = parts
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attend(one_query, key, value, hidden, scale, fresh, front).unsqueeze(1), None

    return attention


def _parts(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Any:
    """What the kernel reads: query, keys, values and what hides them, then the new ones and the prefix; None: it cannot."""
    hidden = None if mask is None else _hidden(mask, key.shape[2])
    fresh = None
    if isinstance(key, HeldStill) and isinstance(value, HeldStill):
        key, value, fresh = key.past, value.past, (key.fresh, value.fresh)
    front = None if (prefix := prefix_of(module)) is None else prefix()
    parts = query[:, :, 0], key, value, hidden, fresh, front
    return parts if attends(*parts) else None


def _hidden(mask: Tensor, tokens: int) -> Tensor:
    """A mask ``[B, 1 or H, 1, S]``, boolean or added, as what is added, float32 ``[B, 1 or H, S]``."""
    mask = mask[:, :, -1, :tokens]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))
    return mask.float()


for name in KNOWN:
    AttentionInterface.register(PREFIX + name, _implementation(name))
    AttentionMaskInterface.register(PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])


class Room:
    """A buffer ``[R, H, capacity, D]`` of which the first tokens are filled; whoever is not at its end takes another."""

    def __init__(self, states: Tensor, tokens: int) -> None:
        capacity = tokens + max(ROOM, tokens // 4)
        self.buffer = states.new_empty(*states.shape[:2], capacity, states.shape[-1])
        self.filled = 0

    def fits(self, before: Tensor, states: Tensor) -> bool:
        """Whether ``before`` is what this buffer holds, with room for ``states``."""
        same = (
            before.data_ptr() == self.buffer.data_ptr()
            and before.shape[:2] == self.buffer.shape[:2] == states.shape[:2]
        )
        return same and self.filled == before.shape[2] <= self.buffer.shape[2] - states.shape[2]

    def append(self, states: Tensor) -> Tensor:
        """``states`` ``[R, H, S, D]`` behind what is there; a view of all."""
        end = self.filled + states.shape[2]
        self.buffer.narrow(2, self.filled, states.shape[2]).copy_(states)
        self.filled = end
        return self.buffer.narrow(2, 0, end)


def appended(room: Room | None, before: Tensor | None, states: Tensor) -> tuple[Room, Tensor]:
    """``before`` (None: nothing) with ``states`` behind it, in ``room`` if that is its end, else in a new one."""
    if room is None or before is None or not room.fits(before, states):
        held = 0 if before is None else before.shape[2]
        room = Room(states, held + states.shape[2])
        if before is not None:
            room.append(before)
    return room, room.append(states)
