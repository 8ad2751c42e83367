"""The compiled kernels as operators into which `torch.compile` does not look: unrolled over T timesteps, a neuron of PyTorch
operations takes Inductor minutes a layer.

The same functions as `fas.neurons.native.kernels`, without ``out``; gradients are operators of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fas.neurons.native import kernels
from fas.neurons.native.build import library


def available() -> bool:
    """Whether there are compiled kernels; constant for the compiler."""
    return library() is not None


# what torch.compiler.assume_constant_result does, which would import the compiler for all who never compile
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def takes(rows: Tensor, *constants: Tensor) -> bool:
    """Whether a compiler traces, and the kernels could do it."""
    if not torch.compiler.is_compiling() or rows.device.type != "cpu" or rows.dtype not in kernels.KINDS:
        return False
    if rows.numel() == 0 or rows.ndim == 0 or not all(value.device.type == "cpu" for value in constants):
        return False
    return all(kernels.is_constant(value, rows) for value in constants) and available()


@torch.library.custom_op("fas::track", mutates_args=())
def _track(
    rows: Tensor, unit: Tensor, v_init: Tensor, a_init: Tensor, steps: list[float], low: int, high: int,
    zones: list[float], want: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return kernels.track(rows, unit, v_init, a_init, steps, (low, high), zones, want)


@_track.register_fake
def _(rows, unit, v_init, a_init, steps, low, high, zones, want):  # type: ignore[no-untyped-def]
    return _like(rows, len(steps), want)


@torch.library.custom_op("fas::fire", mutates_args=())
def _fire(
    rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, mean: bool, want: bool
) -> tuple[Tensor, Tensor]:
    return kernels.fire(rows, threshold, v_init, signed, mean, want)


@_fire.register_fake
def _(rows, threshold, v_init, signed, mean, want):  # type: ignore[no-untyped-def]
    return _like(rows, len(rows), want)


@torch.library.custom_op("fas::quantize", mutates_args=())
def _quantize(x: Tensor, unit: Tensor, low: int, high: int) -> Tensor:
    return kernels.quantize(x, unit, (low, high))


@_quantize.register_fake
def _(x, unit, low, high):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.custom_op("fas::track_back", mutates_args=())
def _track_back(
    grad: Tensor, rows: Tensor, unit: Tensor, v_init: Tensor, a_init: Tensor, steps: list[float], low: int, high: int,
    zones: list[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return kernels.track_back(grad, rows, unit, v_init, a_init, steps, (low, high), zones)


@_track_back.register_fake
def _(grad, rows, unit, v_init, a_init, steps, low, high, zones):  # type: ignore[no-untyped-def]
    return rows.new_empty(rows.shape), unit.new_empty(unit.shape), v_init.new_empty(v_init.shape)


@torch.library.custom_op("fas::fire_back", mutates_args=())
def _fire_back(
    grad: Tensor, rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels.fire_back(grad, rows, threshold, v_init, signed, mean)


@_fire_back.register_fake
def _(grad, rows, threshold, v_init, signed, mean):  # type: ignore[no-untyped-def]
    return rows.new_empty(rows.shape), threshold.new_empty(threshold.shape), v_init.new_empty(v_init.shape)


@torch.library.custom_op("fas::quantize_back", mutates_args=())
def _quantize_back(grad: Tensor, x: Tensor, unit: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    return kernels.quantize_back(grad, x, unit, (low, high))


@_quantize_back.register_fake
def _(grad, x, unit, low, high):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), unit.new_empty(unit.shape)


def track(
    rows: Tensor, unit: Tensor, v_init: Tensor, a_init: Tensor, steps: Sequence[float], bounds: tuple[int, int],
    zones: Sequence[float], want: bool = True, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `fas.neurons.native.kernels`."""
    return _track(rows, unit, v_init, a_init, list(steps), *bounds, list(zones), want)  # type: ignore[no-any-return]


def track_back(
    grad: Tensor, rows: Tensor, unit: Tensor, v_init: Tensor, a_init: Tensor, steps: Sequence[float],
    bounds: tuple[int, int], zones: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `fas.neurons.native.kernels`."""
    return _track_back(grad, rows, unit, v_init, a_init, list(steps), *bounds, list(zones))  # type: ignore[no-any-return]


def fire(
    rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, mean: bool, want: bool = True, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `fas.neurons.native.kernels`."""
    return _fire(rows, threshold, v_init, signed, mean, want)  # type: ignore[no-any-return]


def fire_back(
    grad: Tensor, rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fas.neurons.native.kernels`."""
    return _fire_back(grad, rows, threshold, v_init, signed, mean)  # type: ignore[no-any-return]


def quantize(x: Tensor, unit: Tensor, bounds: tuple[int, int], out: Tensor | None = None) -> Tensor:
    """See `fas.neurons.native.kernels`."""
    return _quantize(x, unit, *bounds)  # type: ignore[no-any-return]


def quantize_back(grad: Tensor, x: Tensor, unit: Tensor, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """See `fas.neurons.native.kernels`."""
    return _quantize_back(grad, x, unit, *bounds)  # type: ignore[no-any-return]


def _like(rows: Tensor, steps: int, want: bool) -> tuple[Tensor, Tensor]:
    spikes = rows.new_empty((steps, *rows.shape[1:]) if want else (0,), dtype=torch.float32)
    return rows.new_empty(rows.shape), spikes
