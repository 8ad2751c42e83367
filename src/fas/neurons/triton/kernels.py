"""The Triton programs as functions of tensors: those of `fas.neurons.native.kernels`, for rows on a GPU.

Rows are ``[T, …, C]`` of float32 or bfloat16, constants ``[C]`` (or ``[1]``) of float32; arithmetic is in float32, and results
have the dtype of the rows. Triton is imported when a program first runs.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fas.errors import FasError
from fas.neurons.native.build import SWITCH

BLOCK = 1024
"""Neurons of a program on the way forward."""
TILE = 512
"""The same on the way back, which holds more of each."""
CHANNELS = 128
"""The most channels of a tile."""
PROGRAMS = 2048
"""About so many share the way back, more than any GPU runs at once; how sums are split does not depend on the GPU."""
_DTYPES = (torch.float32, torch.bfloat16)


def takes(rows: Tensor, *constants: Tensor) -> bool:
    """Whether the programs can do it: a plain tensor on a GPU in a dtype of theirs, and nobody traces operations."""
    plain = type(rows) in (Tensor, torch.nn.Parameter) and rows.is_cuda and rows.dtype in _DTYPES
    if not plain or torch.compiler.is_compiling() or rows.numel() == 0 or is_in_torch_dispatch_mode():
        return False
    return rows.ndim > 0 and not rows.is_neg() and all(_fits(value, rows) for value in constants) and works(rows.device)


def _fits(value: Tensor, rows: Tensor) -> bool:
    """Whether ``value`` is one float, or one for each channel of ``rows``, on their device."""
    plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided and not value.is_neg()
    same = value.device == rows.device and value.dtype == torch.float32
    return plain and same and value.ndim <= 1 and value.numel() in (1, rows.shape[-1])


@functools.cache
def works(device: torch.device) -> bool:
    """Whether Triton is there and its programs run on ``device`` and round as they should; said once, as a warning, where it
    is there and they do not."""
    if os.environ.get(SWITCH) == "0" or importlib.util.find_spec("triton") is None:
        return False
    try:
        _try_out(device)
    except Exception as error:  # whatever a compiler, a driver or another version may raise
        warnings.warn(
            f"Triton kernels do not run on {device} ({type(error).__name__}: {' '.join(str(error).split())[:200]}): neurons "
            f"run in PyTorch, several times slower, with equal results; {SWITCH}=0 says that this is meant",
            stacklevel=3,
        )
        return False
    return True


def track(
    rows: Tensor, unit: Tensor, v_init: Tensor, a_init: Tensor, steps: Sequence[float], bounds: tuple[int, int],
    zones: Sequence[float], want: bool = True, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`fas.neurons.sigma_delta`; ``want``: spikes ``[P·T, …, C]`` of float32 too (else an empty tensor)."""
    rows, out, spikes = rows.contiguous(), _out(rows, out), _spikes(rows, len(steps), want)
    plan = _plan(tuple(steps), tuple(zones), rows.device)
    head = (rows, *_constants(rows, unit, v_init, a_init), plan, out, spikes)
    settings = (len(rows), *map(float, bounds))
    _forward("track", rows[0].numel(), rows.shape[-1], head, settings, EACH=len(steps) // len(rows), TOLD=want)
    return out, spikes


def track_back(
    grad: Tensor, rows: Tensor, unit: Tensor, v_init: Tensor, a_init: Tensor, steps: Sequence[float],
    bounds: tuple[int, int], zones: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the rows, the unit and v₀ (float32)."""
    plan, each = _plan(tuple(steps), tuple(zones), rows.device), len(steps) // len(rows)
    before = (*_constants(rows, unit, v_init, a_init), plan, _notes(rows, len(steps)))
    settings = (len(rows), *map(float, bounds))
    by_rows, by_unit, by_v_init = _backward("track_back", grad, rows, before, (unit, v_init), settings, EACH=each)
    return by_rows, by_unit, by_v_init


def fire(
    rows: Tensor,
    threshold: Tensor,
    v_init: Tensor,
    signed: bool,
    mean: bool,
    want: bool = True,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`fas.neurons.integrate_fire`; ``want`` as of `track`."""
    rows, out, spikes = rows.contiguous(), _out(rows, out), _spikes(rows, len(rows), want)
    head = (rows, *_constants(rows, threshold, v_init), out, spikes)
    how = {"SIGNED": signed, "MEAN": mean, "TOLD": want, "SUM": _sum_type(rows)}
    _forward("fire", rows[0].numel(), rows.shape[-1], head, (len(rows),), **how)
    return out, spikes


def fire_back(
    grad: Tensor, rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the rows, θ and v₀ (float32)."""
    before = (*_constants(rows, threshold, v_init), _notes(rows, len(rows)))
    how = {"SIGNED": signed, "MEAN": mean, "SUM": _sum_type(rows)}
    learned = threshold, v_init
    by_rows, by_threshold, by_v_init = _backward("fire_back", grad, rows, before, learned, (len(rows),), **how)
    return by_rows, by_threshold, by_v_init


def quantize(x: Tensor, unit: Tensor, bounds: tuple[int, int], out: Tensor | None = None) -> Tensor:
    """`fas.neurons.qcfs` of ``x`` ``[…, C]``, on the grid of step ``unit``."""
    x, out = x.contiguous(), _out(x, out)
    _forward("quantize", x.numel(), x.shape[-1], (x, *_constants(x, unit), out), tuple(map(float, bounds)))
    return out


def quantize_back(grad: Tensor, x: Tensor, unit: Tensor, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Gradients of ``x``, and of the unit through what it multiplies, summed over all but the channels."""
    before, limits = _constants(x, unit), tuple(map(float, bounds))
    by_x, by_unit = _backward("quantize_back", grad.unsqueeze(0), x.unsqueeze(0), before, (unit,), limits)
    return by_x[0], by_unit


def _forward(
    name: str, size: int, width: int, head: tuple[Tensor, ...], settings: tuple[float, ...], **constants: Any
) -> None:
    """Launch a program for each `BLOCK` of ``size`` neurons, ``width`` a token."""
    grid = (-(-size // BLOCK),)
    _launch(_programs("forward", name), grid, *head, size, width, *settings, **constants, BLOCK=BLOCK)


def _backward(
    name: str, grad: Tensor, rows: Tensor, before: tuple[Tensor, ...], learned: Sequence[Tensor],
    settings: tuple[float, ...], **constants: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the rows ``[T, …, C]`` and of the constants that are ``learned``, from sums of some tokens each."""
    _same_place("a gradient", grad, rows)
    rows, grad, width = rows.contiguous(), grad.contiguous(), rows.shape[-1]
    tokens = rows[0].numel() // width
    columns = min(CHANNELS, 1 << (width - 1).bit_length())
    tiles, across = -(-tokens // (TILE // columns)), -(-width // columns)
    shares = min(tiles, -(-PROGRAMS // across))
    by_rows = torch.empty_like(rows)
    sums = [torch.empty(shares, width, device=rows.device) for _ in learned]
    _launch(
        _programs("backward", name), (across, shares), grad, rows, *before, by_rows, *sums, tokens, width, *settings,
        **constants, ROWS=TILE // columns, COLS=columns,
    )  # fmt: skip
    return by_rows, *[total.sum(0).sum_to_size(value.shape) for total, value in zip(sums, learned, strict=True)]


def _launch(program: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    # a fused multiply-add rounds once where PyTorch rounds twice
    with torch.cuda.device_of(arguments[0]):
        program[grid](*arguments, **constants, num_warps=4, enable_fp_fusion=False)


def _programs(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"fas.neurons.triton.{module}"), name)


def _constants(rows: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """One float a channel."""
    for value in values:
        if not _fits(value, rows):
            raise FasError(
                f"a compiled kernel got a constant {list(value.shape)} in {value.dtype} on {value.device} for rows of "
                f"{rows.shape[-1]} channels on {rows.device}; give one float a channel there"
            )
    return tuple(value.detach().expand(rows.shape[-1]).contiguous() for value in values)


def _out(rows: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    _same_place("a result", out, rows)
    if not out.is_contiguous() or out.dtype != rows.dtype:
        raise FasError(
            f"a compiled kernel got a result in {out.dtype} and strides {out.stride()}; give one as the rows"
        )
    return out


def _same_place(name: str, value: Tensor, rows: Tensor) -> None:
    """Raise `FasError` where ``value`` does not lie as the rows do: programs would read or write beyond it."""
    if value.device != rows.device or value.shape != rows.shape or value.layout != torch.strided or value.is_neg():
        raise FasError(
            f"a compiled kernel got {name} {list(value.shape)} on {value.device} for rows {list(rows.shape)} on "
            f"{rows.device}; give both one shape and device"
        )


def _spikes(rows: Tensor, steps: int, want: bool) -> Tensor:
    return torch.empty((steps, *rows.shape[1:]) if want else 0, device=rows.device)


def _notes(rows: Tensor, steps: int) -> Tensor:
    return torch.empty(steps, rows[0].numel(), dtype=torch.int8, device=rows.device)


def _sum_type(rows: Tensor) -> Any:
    """That of torch.cumsum, which is wider on a CPU (the interpreter)."""
    language = importlib.import_module("triton.language")
    return language.float32 if rows.is_cuda else language.float64


@functools.lru_cache(maxsize=4096)
def _plan(steps: tuple[float, ...], zones: tuple[float, ...], device: torch.device) -> Tensor:
    """What a program reads of each step; kept, since bringing it to the GPU would make the CPU wait."""
    entries = [(k, 1 / k, 1 + zone, -zone) for k, zone in zip(steps, zones, strict=True)]
    return torch.tensor(entries, dtype=torch.float32, device=device)


def _try_out(device: torch.device) -> None:
    """Run each program once, and raise where it fails or QCFS rounds in another way than PyTorch."""
    x = torch.linspace(-9, 9, 4096, device=device).view(2, 64, 32)
    unit, half = torch.linspace(0.1, 1, 32, device=device), torch.full((32,), 0.5, device=device)
    for rows in (x, x.to(torch.bfloat16)):
        wanted = ((rows / unit + 0.5).floor().clamp(-8, 8) * unit).to(rows.dtype)
        if not torch.equal(quantize(rows, unit, (-8, 8)), wanted):
            raise ArithmeticError("results are not those of PyTorch")
    schedule: tuple[Any, ...] = ([2.0, 1.0], (-8, 8), [0.0, 0.0])
    runs: list[Callable[[], Any]] = [
        lambda: track(x, unit, half, half, *schedule, want=False),
        lambda: track_back(x, x, unit, half, half, *schedule),
        lambda: fire(x, unit, half, True, True, want=False),
        lambda: fire_back(x, x, unit, half, True, True),
        lambda: quantize_back(x, x, unit, (-8, 8)),
    ]
    for run in runs:
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what fails on the GPU fails here
