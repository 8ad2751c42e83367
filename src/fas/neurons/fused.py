"""Which implementation of the neurons there is beside the PyTorch code: the one place that chooses, by the device of the rows.

Compiled C++ on a CPU (`fas.neurons.native.kernels`), Triton on a GPU (`fas.neurons.triton.kernels`): the same functions, equal
to the PyTorch code bit by bit on the way forward. ``FAS_NATIVE=0`` leaves both out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from fas.neurons.native import kernels as native
from fas.neurons.native import opaque
from fas.neurons.triton import kernels as gpu


class Kernels(Protocol):
    """Rows ``[T, …, C]``, constants ``[C]`` or ``[1]``; forward functions return (rows, spikes), ``_back`` ones gradients."""

    def track(
        self, rows: Tensor, unit: Tensor, v_init: Tensor, a_init: Tensor, steps: Sequence[float], bounds: tuple[int, int],
        zones: Sequence[float], want: bool = True, out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    def track_back(
        self, grad: Tensor, rows: Tensor, unit: Tensor, v_init: Tensor, a_init: Tensor, steps: Sequence[float],
        bounds: tuple[int, int], zones: Sequence[float],
    ) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip

    def fire(
        self, rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, mean: bool, want: bool = True,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    def fire_back(
        self, grad: Tensor, rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, mean: bool
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def quantize(self, x: Tensor, unit: Tensor, bounds: tuple[int, int], out: Tensor | None = None) -> Tensor: ...

    def quantize_back(
        self, grad: Tensor, x: Tensor, unit: Tensor, bounds: tuple[int, int]
    ) -> tuple[Tensor, Tensor]: ...


def kernels_for(rows: Tensor, *constants: Tensor) -> Kernels | None:
    """What takes ``rows`` and ``constants`` on their device, or None: PyTorch does."""
    if opaque.takes(rows, *constants):
        return opaque
    found = native if rows.device.type == "cpu" else gpu
    return found if found.takes(rows, *constants) else None
