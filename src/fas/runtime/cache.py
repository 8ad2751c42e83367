"""Key/value caches in folded time.

*Exact*: a layer holds T·B rows; beam search hands it indices of B rows, which are expanded over T.
*Settled*: a layer holds the last timestep's B rows of past tokens; every timestep of a new token reads those (where tokens are
written in place, once for all T: `fas.runtime.held_still`).
*Cross-attention* fills its layers once, from the encoder's states, and then reads their keys without an update.
Layers keep their class's behaviour: each is retagged to a subclass of its own class (a mixin would change its layout).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, EncoderDecoderCache

from fas.errors import FasError
from fas.neurons import Clock
from fas.runtime.decoding import appended
from fas.runtime.held_still import held_still

_FOLDED: dict[tuple[type, Any], type] = {}


def prepare_cache(module: nn.Module, kwargs: dict[str, Any], clock: Clock) -> None:
    """Retag the cache among a segment's arguments, making one where the segment would make its own."""
    cache = kwargs.get("past_key_values")
    if cache is None:
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(getattr(module, "config", None), "use_cache", False)
        if not use_cache or (module.training and getattr(module, "gradient_checkpointing", False)):
            return
        cache = DynamicCache(config=module.config)  # type: ignore[arg-type]
    if kwargs.get("encoder_hidden_states") is not None and not isinstance(cache, EncoderDecoderCache):
        cache = EncoderDecoderCache(cache, DynamicCache(config=module.config))  # type: ignore[arg-type]
    kwargs["past_key_values"] = cache
    if isinstance(cache, EncoderDecoderCache):
        _retag(cache.self_attention_cache, clock)
        _retag(cache.cross_attention_cache, clock, cross=True)
    else:
        _retag(cache, clock)


def _retag(cache: Cache, clock: Clock, cross: bool = False) -> None:
    kind = clock.config.cache
    methods = _exact_methods if kind == "exact" else _settled_cross_methods if cross else _settled_methods
    tag = (kind, clock.config.timesteps, clock.config.neuron_key)
    layers: list[Any] = cache.layers
    for layer in layers:
        layer._fas_in_place = clock.frozen is not None
        filled = getattr(layer, "_fas", None)
        if filled is None and not layer.get_seq_length():
            layer.__class__ = _folded(type(layer), methods)
            layer._fas = tag
        elif filled != tag:
            before = f"{filled[0]} in {filled[2]}" if filled else "values without time"
            raise FasError(
                f"the cache was filled with {before} and is now read as {kind} in {tag[2]}; "
                "start generation anew after changing the time"
            )
    replicate = getattr(cache, "layer_class_to_replicate", None)
    if replicate is not None:
        folded = _folded(replicate, methods)
        cache.layer_class_to_replicate = _Tagged(folded, tag, clock.frozen is not None)  # type: ignore[assignment]


class _Tagged:
    """Makes tagged layers for caches that grow their list of layers while they are filled."""

    def __init__(self, layer_class: type, tag: tuple[str, int, str], in_place: bool) -> None:
        self.layer_class, self.tag, self.in_place = layer_class, tag, in_place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = self.layer_class(*args, **kwargs)
        layer._fas, layer._fas_in_place = self.tag, self.in_place
        return layer


def _folded(layer_class: Any, methods: Callable[[Any], dict[str, Any]]) -> Any:
    if isinstance(layer_class, _Tagged):
        return layer_class.layer_class
    key = (layer_class, methods)
    if key not in _FOLDED:
        if methods is not _exact_methods and layer_class not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise FasError(f"the settled cache needs a dynamic cache, not {layer_class.__name__}; use cache='exact'")
        kind = "Exact" if methods is _exact_methods else "Settled"
        _FOLDED.setdefault(key, type(f"{kind}{layer_class.__name__}", (layer_class,), methods(layer_class)))
    return _FOLDED[key]


def _exact_methods(base: Any) -> dict[str, Any]:
    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        base.reorder_cache(self, expand_rows(beam_idx, self))
        _select_restless(self, beam_idx)

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        base.batch_select_indices(self, expand_rows(indices, self))
        _select_restless(self, indices)

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        if self.get_seq_length() > 0:
            rows = torch.arange(self.keys.shape[0] // self._fas[1], device=self.keys.device).repeat_interleave(repeats)
            base.batch_select_indices(self, expand_rows(rows, self))
            _select_restless(self, rows)

    methods = {
        "reorder_cache": reorder_cache,
        "batch_select_indices": batch_select_indices,
        "batch_repeat_interleave": batch_repeat_interleave,
    }
    return methods | ({"update": _with_room} if base is DynamicLayer else {})


def _with_room(self: Any, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """`DynamicLayer.update`, in place where there is room and tokens are read there (`fas.runtime.decoding`)."""
    if not self._fas_in_place:
        return DynamicLayer.update(self, key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]
    held = self.get_seq_length() > 0
    if not self.is_initialized:
        self.lazy_initialization(key_states, value_states)
    rooms = self.__dict__.setdefault("_fas_rooms", [None, None])
    rooms[0], self.keys = appended(rooms[0], self.keys if held else None, key_states)
    rooms[1], self.values = appended(rooms[1], self.values if held else None, value_states)
    return (self.keys, self.values) if held else (key_states, value_states)


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


def _select_restless(layer: Any, rows: Tensor) -> None:
    """When cached tokens settled (`fas.runtime.adaptive`) goes with their rows."""
    if (kept := getattr(layer, "_fas_restless", None)) is not None:
        layer._fas_restless = kept[:, rows.to(kept.device)]


def _settled_methods(base: Any) -> dict[str, Any]:
    store = _with_room if base is DynamicLayer else base.update

    def update(self: Any, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        timesteps = self._fas[1]
        past = (self.keys, self.values) if self.get_seq_length() else None
        last = slice(key_states.shape[0] - key_states.shape[0] // timesteps, None)
        store(self, key_states[last], value_states[last], *args, **kwargs)
        if past is None:
            return key_states, value_states
        in_place = self._fas_in_place
        return held_still(past[0], key_states, in_place), held_still(past[1], value_states, in_place)

    return {"update": update}


# what a layer does with its own rows; whoever else reads its keys wants those of every timestep
_OWN = (
    "update", "get_seq_length", "reorder_cache", "batch_select_indices", "batch_repeat_interleave", "crop", "reset",
    "offload", "prefetch",
)  # fmt: skip


def _settled_cross_methods(base: Any) -> dict[str, Any]:
    """A settled layer whose ``keys`` and ``values`` are ``[T·B, …]`` to readers and ``[B, …]`` to its own methods."""

    def entry(name: str) -> property:
        def get(self: Any) -> Tensor | None:
            stored = self.__dict__[name]
            if self.__dict__.get("_is_own") or stored is None or stored.numel() == 0:
                return stored
            nothing = stored.new_empty(self._fas[1] * stored.shape[0], stored.shape[1], 0, stored.shape[3])
            return held_still(stored, nothing, self._fas_in_place)

        return property(get, lambda self, value: self.__dict__.__setitem__(name, value))

    def own(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            before, self._is_own = self.__dict__.get("_is_own", False), True
            try:
                return method(self, *args, **kwargs)
            finally:
                self._is_own = before

        return run

    methods = {name: getattr(base, name) for name in _OWN} | _settled_methods(base)
    wrapped: dict[str, Any] = {name: own(method) for name, method in methods.items()}
    return wrapped | {"keys": entry("keys"), "values": entry("values")}
