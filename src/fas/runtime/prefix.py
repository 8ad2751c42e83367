"""A prefix: keys and values of a few tokens in front of every sequence, computed once and kept as constants of the model.

Pre-trained decoders park their attention on a few tokens (the first one, a line break, a space), whose hidden states grow to
thousands of times the median. A threshold that has to span them rounds all other tokens to zero. Where the prefix carries them,
no token that is encoded is massive (PrefixQuant, arXiv 2410.05265; IntactKV, 2403.01241; Massive Activations, 2402.17762).

The attention function puts the constants in front of the keys and values of each call, behind all caches: caches, masks and
positions of a sequence stay as they are. Every token sees the prefix, also where attention has a sliding window.
Rotary positions of the prefix are −n … −1. Learned positions start at 0 for the prefix, so that those of a sequence move by n.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fas.errors import FasError
from fas.models import Segment
from fas.runtime.hooks import Hook

PREFIXED = "fas_prefix_"
BASES = ("sdpa", "eager")
"""Implementations of attention that can be given a prefix, beside FAS's own."""

Shape = tuple[int, int, int]
"""Key heads, features of a key, features of a value."""


class Prefix(nn.Module):
    """Constants of one attention module: keys ``[H, n, D]`` and values ``[H, n, D′]`` of the n tokens of the prefix."""

    def __init__(self, tokens: int, shape: Shape, dtype: torch.dtype, device: torch.device | None) -> None:
        super().__init__()
        heads, key_width, value_width = shape
        self.key = nn.Parameter(torch.zeros(heads, tokens, key_width, dtype=dtype, device=device))
        self.value = nn.Parameter(torch.zeros(heads, tokens, value_width, dtype=dtype, device=device))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Both, so that what is hooked to a forward (offloading) sees that they are needed."""
        return self.key, self.value

    def extra_repr(self) -> str:
        return f"tokens={self.key.shape[1]}"


def prefix_of(module: nn.Module) -> Prefix | None:
    """The prefix of an attention module, or None."""
    found = module._modules.get("prefix")
    return found if isinstance(found, Prefix) else None


def with_prefix(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values ``[R, H, K, D]`` with the prefix of ``module`` in front, and the mask ``[…, S, K]`` for them.

    A mask of None means causal attention, as in transformers; it becomes an explicit one where several tokens are new.
    """
    prefix = prefix_of(module)
    if prefix is None:
        return key, value, mask
    rows, tokens = key.shape[0], prefix.key.shape[1]
    if mask is None and query.shape[2] > 1:
        new, seen = query.shape[2], key.shape[2]
        mask = torch.ones(new, seen, dtype=torch.bool, device=key.device).tril_(seen - new)[None, None]
    front, front_value = prefix()
    key = torch.cat([front.to(key.dtype).expand(rows, -1, -1, -1), key], 2)
    value = torch.cat([front_value.to(value.dtype).expand(rows, -1, -1, -1), value], 2)
    return key, value, None if mask is None else visible_in_front(mask, tokens)


def visible_in_front(mask: Tensor, tokens: int) -> Tensor:
    """``mask`` ``[…, K]`` (boolean, or additive) with ``tokens`` visible ones in front."""
    front = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
    return torch.cat([front(*mask.shape[:-1], tokens), mask], -1)


def ordinary_attention(module: nn.Module, base: str) -> Any:
    """Transformers' function for the implementation ``base``; ``eager`` is the one of the module's own file (None: it has
    none)."""
    found = ALL_ATTENTION_FUNCTIONS.get(base)
    return found or getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def _implementation(base: str) -> Any:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        key, value, mask = with_prefix(module, query, key, value, attention_mask)
        return ordinary_attention(module, base)(module, query, key, value, mask, **kwargs)  # type: ignore[no-any-return]

    return attention


for name in BASES:
    AttentionInterface.register(PREFIXED + name, _implementation(name))
    AttentionMaskInterface.register(PREFIXED + name, ALL_MASK_ATTENTION_FUNCTIONS[name])


def attention_modules(segment: Segment) -> dict[int, nn.Module]:
    """The self-attention modules of a decoder by the number of their layer."""
    found = {}
    for module in segment.module.modules():
        number = getattr(module, "layer_idx", None)
        if number is not None and type(module).__name__.endswith("Attention"):
            found[int(number)] = module
    return found


@torch.no_grad()
def prefix_states(segment: Segment, tokens: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Keys and values ``[H, n, D]`` by layer that the ANN ``segment`` has for ``tokens`` at the start of a sequence.

    Raises `FasError` for a segment that is no causal decoder, or tokens that its vocabulary lacks.
    """
    if segment.family.positions is None:
        raise FasError(f"{segment.family.name} is no causal decoder, so it can have no prefix; set prefix=()")
    module: Any = segment.module
    size = module.get_input_embeddings().num_embeddings
    if any(not 0 <= token < size for token in tokens):
        raise FasError(f"prefix {list(tokens)} holds a token beyond the vocabulary of {size}; choose others")
    first = -len(tokens) if segment.family.positions == "rotary" else 0
    ids = torch.tensor([list(tokens)], device=module.device)
    positions = torch.arange(first, first + len(tokens), device=module.device)[None]
    cache, training = DynamicCache(config=module.config), module.training
    module.eval()
    try:
        module(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
    finally:
        module.train(training)
    return {number: (layer.keys[0].clone(), layer.values[0].clone()) for number, layer in enumerate(cache.layers)}  # type: ignore[index]


def add_prefix(segment: Segment, tokens: int, shapes: Mapping[int, Shape], dtype: torch.dtype) -> None:
    """Give the attention modules of ``segment`` empty prefixes of ``tokens``, and make its attention and positions use them.

    A segment that has a prefix keeps it. Raises `FasError` where attention is computed by an implementation that cannot be
    given a prefix.
    """
    if any(prefix_of(module) is not None for module in segment.module.modules()):
        return
    choose = _AttentionHook()
    choose(segment.module)
    choose.handle = segment.module.register_forward_pre_hook(choose)
    for number, module in attention_modules(segment).items():
        if number in shapes:
            module.add_module("prefix", Prefix(tokens, shapes[number], dtype, _device_of(module, segment.module)))
    if segment.family.positions == "learned":
        _move_positions(segment, tokens)


def _device_of(*modules: nn.Module) -> torch.device | None:
    """Where the weights of the first of ``modules`` lie that are in memory."""
    return next((p.device for module in modules for p in module.parameters() if not p.is_meta), None)


def shapes_of(model: nn.Module) -> dict[int, Shape]:
    """The shapes of the prefixes in ``model`` by layer; empty where it has none."""
    found: dict[int, Shape] = {}
    for module in model.modules():
        if (prefix := prefix_of(module)) is not None:
            heads, _, width = prefix.key.shape
            found[int(module.layer_idx)] = (heads, width, prefix.value.shape[-1])  # type: ignore[arg-type]
    return found


@torch.no_grad()
def fill_prefix(segment: Segment, states: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """Set the constants of ``segment`` to ``states``."""
    for number, module in attention_modules(segment).items():
        if (prefix := prefix_of(module)) is not None:
            prefix.key.copy_(states[number][0])
            prefix.value.copy_(states[number][1])


def remove_prefix(segment: Segment) -> None:
    """Take the prefix of ``segment`` away: attention and positions are the ANN's again."""
    tokens = 0
    for module in attention_modules(segment).values():
        if (prefix := prefix_of(module)) is not None:
            tokens = prefix.key.shape[1]
            del module.prefix
    if not tokens:
        return
    for module in segment.module.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, _AttentionHook | _PositionHook):
                hook.handle.remove()
    config: Any = segment.module.config
    config._attn_implementation_internal = str(config._attn_implementation).removeprefix(PREFIXED)
    if segment.family.positions == "learned":
        table: Any = segment.module.get_submodule(segment.family.position_table)
        if hasattr(table, "offset"):
            table.offset -= tokens


class _AttentionHook(Hook):
    """Pre-hook of a segment: whatever implementation of attention a user has set, it is the one that sees the prefix."""

    def __call__(self, module: nn.Module, args: Any = ()) -> None:
        config: Any = module.config
        chosen = config._attn_implementation
        if chosen in BASES:
            config._attn_implementation_internal = PREFIXED + chosen
        elif not str(chosen).startswith("fas_"):
            raise FasError(
                f"the model has a prefix, and attention {chosen!r} cannot be given one; choose attn_implementation='sdpa'"
            )


class _PositionHook(Hook):
    """Pre-hook of a table of learned positions: moves those of a sequence behind the prefix."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        positions = args[0] + self.tokens
        size = module.num_embeddings
        if positions.numel() and int(positions.max()) >= size:  # type: ignore[operator]
            raise FasError(
                f"the sequence needs {int(positions.max()) + 1} positions with the prefix of {self.tokens} tokens, and the "
                f"model has {size}; give at most {size - self.tokens} tokens"  # type: ignore[operator]
            )
        return (positions, *args[1:])


def _move_positions(segment: Segment, tokens: int) -> None:
    table: Any = segment.module.get_submodule(segment.family.position_table)
    if hasattr(table, "offset"):  # OPT's table adds it to positions that it works out itself
        table.offset += tokens
        return
    hook = _PositionHook(tokens)
    hook.handle = table.register_forward_pre_hook(hook)
