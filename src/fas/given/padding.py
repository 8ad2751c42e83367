"""Padding cut away: rows of equal length stand together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fas.errors import DataError

MASKS = {"attention_mask": "input_ids", "decoder_attention_mask": "decoder_input_ids"}
"""Which tokens each mask is for."""
BY_TOKEN = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids", "bbox")
"""Endings of the arguments whose second axis is that of the tokens."""


def without_padding(batches: Sequence[dict[str, Any]], verb: str) -> list[dict[str, Any]]:
    """``batches`` without padding: those that have none as they are, and behind them the rows of the others, cut to their real
    tokens, rows of equal lengths in batches as large as the largest that was padded.

    Rows of padding alone are left out. Raises `DataError` where padding stands between tokens, where a batch cannot be taken
    apart into rows, and where nothing is left.
    """
    found = [batch for batch in batches if not _is_padded(batch)]
    by_length: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    most = 1
    for number, batch in enumerate(batches):
        if not _is_padded(batch):
            continue
        rows = [row for row in _rows(batch, f"{verb}: batch {number}") if row]
        most = max(most, len(rows))
        for row in rows:
            shapes = tuple((name, tuple(value.shape)) for name, value in row.items() if isinstance(value, Tensor))
            by_length.setdefault(shapes, []).append(row)
    for rows in by_length.values():
        found += [_together(rows[first : first + most]) for first in range(0, len(rows), most)]
    if not found:
        raise DataError(
            f"{verb}: the batches hold padding alone (attention_mask is 0 everywhere); give texts that have tokens"
        )
    return found


def _is_padded(batch: Mapping[str, Any]) -> bool:
    masks = [batch.get(name) for name in MASKS]
    return any(isinstance(mask, Tensor) and not isinstance(mask, FakeTensor) and not bool(mask.all()) for mask in masks)


def _rows(batch: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Each row of ``batch``, cut to its real tokens; an empty one where it has none."""
    first = batch.get("input_ids", batch.get("inputs_embeds"))
    mask = batch.get("attention_mask", batch.get("decoder_attention_mask"))
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise DataError(
            f"{where} has a mask of the shape {list(mask.shape)}, whose padding cannot be cut; give full sequences"
        )
    size = len(mask) if first is None else len(first)
    for name, value in batch.items():
        packed = isinstance(value, Tensor) and value.ndim > 0 and len(value) not in (1, size)
        if packed or (name == "position_ids" and isinstance(value, Tensor) and value.ndim > 2):
            raise DataError(
                f"{where} is padded, and {name} has {len(value)} rows where it has {size} sequences, so that it cannot be "
                "taken apart; give each sequence as a batch of its own, without padding"
            )
    return [_row(batch, index, size, where) for index in range(size)]


def _row(batch: Mapping[str, Any], index: int, size: int, where: str) -> dict[str, Any]:
    row = {
        name: value[index : index + 1] if isinstance(value, Tensor) and value.ndim and len(value) == size else value
        for name, value in batch.items()
    }
    for name, tokens in MASKS.items():
        mask = row.get(name)
        if not isinstance(mask, Tensor):
            continue
        real = mask[0].nonzero().flatten()
        if not len(real):
            return {}
        start, end = int(real[0]), int(real[-1]) + 1
        if end - start != len(real):
            raise DataError(
                f"{where} has padding between the tokens of row {index}; give each text as a sequence of its own"
            )
        decoder = tokens.startswith("decoder")
        for other, value in row.items():
            if isinstance(value, Tensor) and other.endswith(BY_TOKEN) and other.startswith("decoder") == decoder:
                row[other] = value[:, start:end]
    return row


def _together(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: torch.cat([row[name] for row in rows]) if isinstance(value, Tensor) and value.ndim else value
        for name, value in rows[0].items()
    }
