"""Key/value caches in folded time.

*Exact*: a layer holds T·B rows; beam search hands it indices of B rows, which are expanded over T.
*Settled*: a layer holds the last timestep's B rows of past tokens; every timestep of a new token reads those.
Layers keep their class's behaviour: each is retagged to a subclass of its own class (a mixin would change its layout).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, EncoderDecoderCache

from fas.errors import FasError
from fas.neurons import Clock

_FOLDED: dict[tuple[type, str], type] = {}


def prepare_cache(module: nn.Module, kwargs: dict[str, Any], clock: Clock) -> None:
    """Retag the cache among a segment's arguments, making one where the segment would make its own."""
    cache = kwargs.get("past_key_values")
    if cache is None:
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(getattr(module, "config", None), "use_cache", False)
        if not use_cache or (module.training and getattr(module, "gradient_checkpointing", False)):
            return
        cache = kwargs["past_key_values"] = DynamicCache(config=module.config)  # type: ignore[arg-type]
    _retag(cache, clock)


def _retag(cache: Cache, clock: Clock) -> None:
    if isinstance(cache, EncoderDecoderCache):
        raise FasError("caches of encoder–decoder models are not folded over time yet")
    kind = clock.config.cache
    tag = (kind, clock.config.timesteps, clock.config.neuron_key)
    layers: list[Any] = cache.layers
    for layer in layers:
        filled = getattr(layer, "_fas", None)
        if filled is None and not layer.get_seq_length():
            layer.__class__ = _folded(type(layer), kind)
            layer._fas = tag
        elif filled != tag:
            before = f"{filled[0]} in {filled[2]}" if filled else "values without time"
            raise FasError(
                f"the cache was filled with {before} and is now read as {kind} in {tag[2]}; "
                "start generation anew after changing the time"
            )
    replicate = getattr(cache, "layer_class_to_replicate", None)
    if replicate is not None:
        folded = _folded(replicate, kind)
        cache.layer_class_to_replicate = _Tagged(folded, tag)  # type: ignore[assignment]


class _Tagged:
    """Makes tagged layers for caches that grow their list of layers while they are filled."""

    def __init__(self, layer_class: type, tag: tuple[str, int, str]) -> None:
        self.layer_class, self.tag = layer_class, tag

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = self.layer_class(*args, **kwargs)
        layer._fas = self.tag
        return layer


def _folded(layer_class: Any, kind: str) -> Any:
    if isinstance(layer_class, _Tagged):
        return layer_class.layer_class
    key = (layer_class, kind)
    if key not in _FOLDED:
        if kind == "settled" and layer_class not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise FasError(f"the settled cache needs a dynamic cache, not {layer_class.__name__}; use cache='exact'")
        methods = _settled_methods(layer_class) if kind == "settled" else _exact_methods(layer_class)
        _FOLDED[key] = type(f"{kind.capitalize()}{layer_class.__name__}", (layer_class,), methods)
    return _FOLDED[key]


def _exact_methods(base: Any) -> dict[str, Any]:
    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        base.reorder_cache(self, expand_rows(beam_idx, self))

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        base.batch_select_indices(self, expand_rows(indices, self))

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        if self.get_seq_length() > 0:
            rows = torch.arange(self.keys.shape[0] // self._fas[1]).repeat_interleave(repeats)
            base.batch_select_indices(self, expand_rows(rows, self))

    return {
        "reorder_cache": reorder_cache,
        "batch_select_indices": batch_select_indices,
        "batch_repeat_interleave": batch_repeat_interleave,
    }


def expand_rows(rows: Tensor, layer: Any) -> Tensor:
    """Indices of B rows as indices of the T·B rows that ``layer`` holds, time-major.

    With T = 2 and B = 3, rows [2, 0] become [2, 0, 5, 3].
    """
    if layer.keys is None:
        return rows
    timesteps = layer._fas[1]
    batch = layer.keys.shape[0] // timesteps
    rows = rows.to(layer.keys.device)
    offsets = torch.arange(timesteps, device=rows.device) * batch
    return (offsets[:, None] + rows[None]).flatten()


def _settled_methods(base: Any) -> dict[str, Any]:
    def update(self: Any, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        timesteps = self._fas[1]
        past = (self.keys, self.values) if self.get_seq_length() else None
        last = slice(key_states.shape[0] - key_states.shape[0] // timesteps, None)
        base.update(self, key_states[last], value_states[last], *args, **kwargs)
        if past is None:
            return key_states, value_states
        keys, values = (p.repeat(timesteps, 1, 1, 1) for p in past)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    return {"update": update}
