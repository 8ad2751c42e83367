"""Which path of integer products is exact in this process: each is tried out on the worst operands before it is used.

A processor's name does not tell: PyTorch's settings, environment variables (``ONEDNN_MAX_CPU_ISA``) and versions of oneDNN
choose what multiplies.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fas.runtime.integer_products import INTEGERS, PATHS, Path

SHAPES = ((33, 1, 5), (34, 63, 65), (40, 1024, 33), (257, 64, 96), (47, 4099, 17))
"""Rows, inputs, outputs."""
ROUNDED = 2e-6
"""What sums in fp32 may be off by, of the sum of their terms' sizes."""


def path_for(most: int, inputs: int, size: int) -> Path | None:
    """The first path that is exact for ``inputs`` operands of at most ``most`` and weights of ``size`` bytes, or None."""
    asked = (path for path in PATHS if path.takes(most, inputs, size))
    return next((path for path in asked if is_exact(path, size, settings())), None)


def settings() -> tuple[Any, ...]:
    """What may change the answer within a process: the precision of fp32 products, and autocast."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # younger than the oldest supported PyTorch
    precision = torch.get_float32_matmul_precision() if matmul is None else matmul.fp32_precision
    return precision, torch.is_autocast_enabled("cpu")


@functools.cache
def is_exact(path: Path, size: int, settings: Any) -> bool:
    """Whether ``path`` agrees with float64 on the worst operands and weights of ``size`` bytes."""
    try:
        return all(_agrees(path, size, *case) for case in _cases(path, size))
    except (RuntimeError, AttributeError):  # oneDNN is missing, or has no kernel for this processor
        return False


def _agrees(path: Path, size: int, codes: Tensor, whole: Tensor) -> bool:
    steps = torch.ones(len(whole), dtype=torch.float64, device="cpu")
    found = path.pack(whole, steps, size, path.offset)((codes + path.offset).to(torch.uint8))
    wanted = codes @ whole.T
    allowed = ROUNDED * (codes.abs() @ whole.abs().T)
    if size == 1 and path in INTEGERS:
        allowed = wanted.abs() * 2**-23  # whole sums up to 2²³ must be equal
    return found.dtype == torch.float32 and bool(((found.double() - wanted).abs() <= allowed).all())


def _cases(path: Path, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Operands ``[M, K]`` and weights ``[N, K]`` of float64: all at one end, each at either end, any."""
    random = torch.Generator().manual_seed(0)
    top, bottom = (sum(digit * 256**place for place in range(size)) for digit in (127, -128))
    ends = (path.offset - 1, 1 - path.offset)

    def drawn(shape: tuple[int, int], low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=random, device="cpu").double()

    for rows, inputs, outputs in SHAPES:
        a, w = (rows, inputs), (outputs, inputs)
        sides, signs = drawn((rows, 1), 0, 1), drawn((outputs, 1), 0, 1)
        if path in INTEGERS:  # sums of equal terms in fp32 are rounded in one direction
            yield (
                torch.where(sides == 1, *ends).expand(a).double(),
                torch.where(signs == 1, top, bottom).expand(w).double(),
            )
        yield torch.where(drawn(a, 0, 1) == 1, *ends).double(), torch.where(drawn(w, 0, 1) == 1, top, bottom).double()
        yield drawn(a, ends[1], ends[0]), drawn(w, bottom, top)
