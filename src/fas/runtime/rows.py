"""The sequences of a batch taken apart, as arguments of a model, and what it says of them put together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, EncoderDecoderCache
from transformers.utils import ModelOutput

from fas.errors import FasError

ANCHORS = ("input_ids", "inputs_embeds", "pixel_values", "decoder_input_ids", "decoder_inputs_embeds")
"""Arguments that say how many sequences a batch has: the first that is given."""
SHARED = frozenset({"cache_position", "logits_to_keep", "num_items_in_batch"})
"""Tensors that have no axis of the batch."""


def rows_in(named: Mapping[str, Any]) -> int | None:
    """Sequences of a batch of arguments ``named``; None where no argument says it."""
    return next((len(named[name]) for name in ANCHORS if isinstance(named.get(name), Tensor)), None)


def obstacle(named: Mapping[str, Any], axes: Mapping[str, int], rows: int) -> str | None:
    """What of ``named`` cannot be taken apart into ``rows`` sequences, in words; ``axes`` of batches where not the first."""
    for name, value in named.items():
        if isinstance(value, Cache):
            if not starts_empty(value):
                return f"{name} is a {type(value).__name__} that cannot be taken apart"
        elif isinstance(value, Tensor) and value.ndim and name not in SHARED:
            if value.shape[axes.get(name, 0)] not in (1, rows):
                return f"{name} has {value.shape[axes.get(name, 0)]} rows where the batch has {rows}"
        elif any(not isinstance(entry, Tensor) or entry.shape[:1] != (rows,) for entry in _entries(value)):
            return f"{name} is a {type(value).__name__} of more than a row for each sequence"
    return None


def part(named: Mapping[str, Any], axes: Mapping[str, int], rows: int, first: int, size: int) -> dict[str, Any]:
    """The arguments for ``size`` of ``rows`` sequences, from ``first`` on; each part has a cache of its own."""

    def of(value: Any, axis: int = 0) -> Any:
        if isinstance(value, Tensor):
            own = value.ndim and value.shape[axis] == rows
            return value.narrow(axis, first, size) if own else value
        if isinstance(value, Cache):
            return copy.deepcopy(value)
        if isinstance(value, ModelOutput | dict):
            return type(value)(**{key: of(entry) for key, entry in value.items()})
        return type(value)(map(of, value)) if isinstance(value, tuple | list) else value

    return {name: value if name in SHARED else of(value, axes.get(name, 0)) for name, value in named.items()}


class Together:
    """What a model says of ``rows`` sequences, filled chunk by chunk, so that no row is ever held twice."""

    def __init__(self, model: Any, rows: int, given: Cache | None) -> None:
        self.model, self.rows, self.given = model, rows, given
        self.output: Any = None
        self.caches: list[Cache] = []

    def add(self, output: Any, first: int, size: int, share: float) -> None:
        """``output`` of ``size`` sequences from ``first`` on, whose mean loss counts for ``share``."""
        self.output = self._put(self.output, output, first, size, share)

    def _put(self, whole: Any, value: Any, first: int, size: int, share: float) -> Any:
        if isinstance(value, Cache):
            self.caches.append(value)
            return self.caches[0]
        if isinstance(value, Tensor):
            if value.ndim == 0:  # a chunk without labels has no mean
                return (0 if whole is None else whole) + (value * share if share else 0)
            each, rest = divmod(len(value), size)
            if rest:
                raise FasError(
                    f"{type(self.model).__name__} gave {len(value)} rows for {size} sequences, which fas.memory_limit cannot "
                    "put together; call it outside of it"
                )
            whole = value.new_empty(self.rows * each, *value.shape[1:]) if whole is None else whole
            whole[first * each : (first + size) * each] = value
            return whole
        if isinstance(value, ModelOutput):
            put = {key: self._put(whole and whole[key], entry, first, size, share) for key, entry in value.items()}
            return type(value)(**put)
        if isinstance(value, list):  # of images, one after the other
            return (whole or []) + value
        if isinstance(value, tuple):  # of layers
            before = [None] * len(value) if whole is None else whole
            return tuple(self._put(old, new, first, size, share) for old, new in zip(before, value, strict=True))
        return value

    def finish(self) -> Any:
        """The output; a cache that was given is filled."""
        if self.caches:
            merge(self.caches)
            if self.given is not None:
                vars(self.given).update(vars(self.caches[0]))
        return self.output if self.given is None else _with(self.output, self.caches[0], self.given)


def _with(output: Any, found: Any, wanted: Any) -> Any:
    if isinstance(output, ModelOutput):
        for key in [key for key, value in output.items() if value is found]:
            output[key] = wanted
        return output
    return tuple(wanted if entry is found else entry for entry in output) if isinstance(output, tuple) else output


def starts_empty(cache: Cache) -> bool:
    """Whether ``cache`` is of a kind that grows with what it is given, and holds nothing yet."""
    if isinstance(cache, EncoderDecoderCache):
        return starts_empty(cache.self_attention_cache) and starts_empty(cache.cross_attention_cache)
    grows = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return type(cache) is DynamicCache and grows and not is_filled(cache)


def is_filled(cache: Any) -> bool:
    """Whether ``cache`` holds past tokens."""
    return isinstance(cache, Cache) and cache.get_seq_length() > 0


def merge(caches: list[Any]) -> None:
    """Make the first of ``caches`` that of all their sequences, layer by layer; the others are emptied.

    Exact layers in folded time hold T·b rows, time-major (`fas.runtime.cache`).
    """
    if isinstance(caches[0], EncoderDecoderCache):
        merge([cache.self_attention_cache for cache in caches])
        merge([cache.cross_attention_cache for cache in caches])
        return
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        parts: list[dict[str, Any]] = [vars(layer) for layer in layers]  # of settled layers not what others read
        kind, timesteps, *_ = parts[0].get("_fas") or ("settled", 1)
        for rows in parts:
            rows.pop("_fas_rooms", None)  # of which keys and values are no part any more (`fas.runtime.decoding`)
        for name in ("keys", "values"):
            if isinstance(parts[0].get(name), Tensor):
                split = [rows[name].unflatten(0, (timesteps if kind == "exact" else 1, -1)) for rows in parts]
                for rows in parts:
                    rows[name] = None
                parts[0][name] = torch.cat(split, 1).flatten(0, 1)
                del split
        if "_fas_restless" in parts[0]:
            parts[0]["_fas_restless"] = torch.cat([rows["_fas_restless"] for rows in parts], 1)


def bytes_of(value: Any) -> int:
    """Bytes of all tensors in what a model gives."""
    if isinstance(value, EncoderDecoderCache):
        return bytes_of(value.self_attention_cache) + bytes_of(value.cross_attention_cache)
    if isinstance(value, Cache):
        held = [vars(layer).get(name) for layer in value.layers for name in ("keys", "values")]
        return sum(
            entry.untyped_storage().nbytes() for entry in held if isinstance(entry, Tensor)
        )  # with room for more
    return value.nbytes if isinstance(value, Tensor) else sum(map(bytes_of, _entries(value)))


def _entries(value: Any) -> list[Any]:
    if isinstance(value, ModelOutput | dict):
        return list(value.values())
    return list(value) if isinstance(value, tuple | list) else []
