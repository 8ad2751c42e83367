"""Kernels for few rows: products that read only what fires, and attention of one token behind a cache."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from fas.errors import FasError
from fas.neurons.native.kernels import KINDS, SHARE, addressed, function_of, is_plain

WEIGHTS = {torch.float32: 0, torch.bfloat16: 1, torch.int16: 2, torch.int8: 3}


def is_wide() -> bool:
    """Whether this processor has vectors of sixteen floats (AVX-512)."""
    return lanes() == 16


def lanes() -> int:
    """Floats of a vector of the instruction set that the kernels were compiled for."""
    return int(function_of("fas_lanes")())


class Weights(NamedTuple):
    """Of one linear layer, ``[K, N]``, the weights of an input side by side."""

    rows: Tensor
    """float32, bfloat16, int16 or int8."""
    bias: Tensor | None = None
    """``[N]`` of float32."""
    step: Tensor | None = None
    """``[N]`` of float32: what integers stand for."""
    unit: Tensor | None = None
    """``[K]`` of float32: what an operand is divided by; its weights have been multiplied by it."""
    base: Tensor | None = None
    """``[K]`` of float32: the operand of a silent input; the bias accounts for it."""


class Gather:
    """Products of few rows with weights that stay: only what fires is read, once for up to eight rows."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights = _checked(weights)
        self.inputs, self.outputs = weights.rows.shape
        self.kernel, self.worth = function_of("fas_gather"), weights.rows.numel() // SHARE
        self.before = (self.inputs, _at(weights.base), _at(weights.unit))
        kept = (
            WEIGHTS[weights.rows.dtype],
            weights.rows.data_ptr(),
            self.outputs,
            _at(weights.step),
            _at(weights.bias),
        )
        self.behind = kept

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` ``[…, K]`` (float32 or bfloat16) to ``[…, N]`` in its dtype; sums are of float32."""
        if not (is_plain(x) and x.dtype in KINDS and x.shape[-1] == self.inputs):
            addressed("x", x, KINDS, *x.shape[:-1], self.inputs)  # says what is wrong
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], self.outputs)
        threads = max(1, min(torch.get_num_threads(), self.worth))
        head = (KINDS[x.dtype], x.data_ptr(), x.numel() // self.inputs)
        self.kernel(*head, *self.before, *self.behind, out.data_ptr(), threads)
        return out


class Dense:
    """Products of few rows with weights ``[N, K]`` of their dtype that stay, all of them read, once for up to eight rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.outputs, self.inputs = weight.shape
        self.weight = weight = addressed("a weight", weight, KINDS, *weight.shape)
        self.bias = bias = None if bias is None else addressed("a bias", bias, (torch.float32,), self.outputs)
        self.kernel, self.worth = function_of("fas_dense"), weight.numel() // SHARE
        self.kept = (weight.data_ptr(), self.outputs, _at(bias))

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` ``[…, K]`` of the dtype of the weights to ``[…, N]``; sums are of float32."""
        x = addressed("x", x, (self.weight.dtype,), *x.shape[:-1], self.inputs)
        out = x.new_empty(*x.shape[:-1], self.outputs)
        head = (KINDS[x.dtype], x.data_ptr(), x.numel() // self.inputs, self.inputs)
        self.kernel(*head, *self.kept, out.data_ptr(), max(1, min(torch.get_num_threads(), self.worth)))
        return out


def active(x: Tensor, base: Tensor | None = None) -> int:
    """How many of the K inputs of ``x`` ``[M, K]`` are not silent in all rows."""
    x = addressed("x", x, KINDS, *x.shape)
    base = None if base is None else addressed("a constant", base, (torch.float32,), x.shape[1])
    return int(function_of("fas_active")(KINDS[x.dtype], x.data_ptr(), len(x), x.shape[1], _at(base)))


def attend(
    query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None, scale: float,
    fresh: tuple[Tensor, Tensor] | None = None, prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """softmax(q·kᵀ·scale + hidden)·v of one token: ``query`` ``[R, H, D]``, keys and values ``[P, H′, S, D]``, H a multiple of
    H′, of one dtype, by whatever strides; float32 ``hidden`` ``[R or 1, H or 1, S + n]``. ``[R, H, D]``; sums are of float32.

    R is a multiple of P: row r reads keys r modulo P, and behind them those of ``fresh``, keys and values ``[R, H′, n, D]``;
    all rows read those of ``prefix``, ``[H′, m, D]``, first, which nothing hides.
    """
    if not attends(query, keys, values, hidden, fresh, prefix):
        raise FasError(
            f"the compiled attention got queries {list(query.shape)} in {query.dtype} on {query.device} and keys "
            f"{list(keys.shape)} in {keys.dtype} on {keys.device}, or others beside them, that do not fit; "
            "give all tensors one dtype on a CPU"
        )
    (rows, heads, width), (period, shared, tokens) = query.shape, keys.shape[:3]
    query, keys, values = (_side_by_side(entry) for entry in (query, keys, values))
    more = (keys[:0], values[:0]) if fresh is None else tuple(map(_side_by_side, fresh))
    front = (keys[:0], values[:0]) if prefix is None else tuple(_side_by_side(entry[None]) for entry in prefix)
    out = torch.empty(rows, heads, width, dtype=query.dtype, device=query.device)
    masked = (0, 0, 0)
    if hidden is not None:
        masked = tuple(0 if size == 1 else step for size, step in zip(hidden.shape, hidden.stride(), strict=True))
    parts = (keys, values, *more, *front)
    strides = [*query.stride()[:2], 0, *[step for part in parts for step in part.stride()[:3]], *masked]
    at = (ctypes.c_void_p * 6)(*[part.data_ptr() for part in parts])
    counts = (ctypes.c_int64 * 3)(tokens, *[0 if part is None else part[0].shape[-2] for part in (fresh, prefix)])
    threads = max(1, min(torch.get_num_threads(), rows * heads, rows * shared * sum(counts) * width // SHARE))
    shape = (rows, period, heads, heads // shared, width)
    operands = (query.data_ptr(), at, _at(hidden), (ctypes.c_int64 * 24)(*strides), counts)
    function_of("fas_attend")(KINDS[query.dtype], *operands, *shape, scale, out.data_ptr(), threads)
    return out


def attends(
    query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None,
    fresh: tuple[Tensor, Tensor] | None = None, prefix: tuple[Tensor, Tensor] | None = None,
) -> bool:  # fmt: skip
    """Whether `attend` can read all of this: shapes that fit, one dtype of the kernels', on a CPU."""
    if query.ndim != 3 or keys.ndim != 4 or query.dtype not in KINDS:
        return False
    (rows, heads, width), (period, shared, tokens) = query.shape, keys.shape[:3]
    if not (shared and period) or heads % shared or rows % period:
        return False
    wanted = [(query, query.shape), *((entry, (period, shared, tokens, width)) for entry in (keys, values))]
    if fresh is not None:
        tokens += fresh[0].shape[-2]
        wanted += [(entry, (rows, shared, fresh[0].shape[-2], width)) for entry in fresh]
    if prefix is not None:
        wanted += [(entry, (shared, prefix[0].shape[-2], width)) for entry in prefix]
    if not all(is_plain(x) and x.dtype == query.dtype and tuple(x.shape) == tuple(shape) for x, shape in wanted):
        return False
    if hidden is None:
        return True
    sizes = len(hidden.shape) == 3 and all(
        size in (1, most) for size, most in zip(hidden.shape, (rows, heads), strict=False)
    )
    return sizes and hidden.shape[-1] == tokens and hidden.dtype == torch.float32 and is_plain(hidden)


def _checked(weights: Weights) -> Weights:
    """``weights`` side by side in memory; raises `FasError` where they do not fit together."""
    inputs, outputs = weights.rows.shape
    rows = addressed("weights", weights.rows, WEIGHTS, inputs, outputs)
    sizes = {"bias": outputs, "step": outputs, "unit": inputs, "base": inputs}
    others = {name: value for name in sizes if (value := getattr(weights, name)) is not None}
    floats = {name: addressed(f"a {name}", value, (torch.float32,), sizes[name]) for name, value in others.items()}
    return Weights(rows, **floats)


def _side_by_side(entry: Tensor) -> Tensor:
    return entry if entry.stride(-1) == 1 else entry.contiguous()


def _at(value: Tensor | None) -> int | None:
    return None if value is None else value.data_ptr()
