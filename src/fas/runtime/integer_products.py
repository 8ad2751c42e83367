"""Products of whole numbers on a CPU: four paths to the same sums. Which of them is exact here: `fas.runtime.product_probe`.

Operands ``[M, K]`` are whole numbers of at most 127 of either sign. Weights ``[N, K]`` are whole numbers of one, two or three
bytes times a step for each output; their bytes are digits to the base 256. The paths, the fastest first:

* ``8-bit``: oneDNN on operands + 128. Exact where a processor adds products in 32 bits (VNNI, AMX). Others add two of them in
  16 bits first, which saturate.
* ``7-bit``: oneDNN on operands + 64, for operands up to 63: two products are at most 2·127·128 = 32,512, which 16 bits hold.
* ``float32``: one fp32 product of the same whole weights, which fp32 holds; only sums are rounded.
* ``float32-digits``: one fp32 product a byte, where products of fp32 round their operands to bfloat16, which holds a byte.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""Operands and the offset of their path, ``[M, K]`` of uint8, to products ``[M, N]`` of float32."""


class Path(NamedTuple):
    """One way to multiply, and what it takes."""

    name: str
    pack: Callable[[Tensor, Tensor, int, int], Product]
    """Whole weights ``[N, K]`` and steps ``[N]`` of float64, bytes of a weight, and the offset."""
    offset: int
    """Added to operands, so that none is negative."""
    bytes: int = 3
    """Of a weight, at most; with more of them a later path is faster."""
    longest: int = 2**31
    """Inputs, at most."""

    def takes(self, most: int, inputs: int, size: int) -> bool:
        """Whether ``inputs`` operands of at most ``most``, and weights of ``size`` bytes, are not too many for it."""
        return most < self.offset and inputs <= self.longest and size <= self.bytes


def digits_of(whole: Tensor, size: int) -> list[Tensor]:
    """Whole numbers of float64 as ``size`` digits to the base 256, of int8, the lowest first."""
    digits = []
    for place in range(size):
        above = ((whole + 128) / 256).floor() if place + 1 < size else torch.zeros_like(whole)
        digits.append((whole - 256 * above).to(torch.int8))
        whole = above
    return digits


def _by_onednn(whole: Tensor, steps: Tensor, size: int, offset: int) -> Product:
    places = enumerate(digits_of(whole, size))
    packed = [
        (torch.ops.onednn.qlinear_prepack(digit.contiguous(), None), (steps * 256**place).float())
        for place, digit in places
    ]
    (first, worth), *others = reversed(packed)
    zeros = torch.zeros(len(whole), dtype=torch.int32, device=whole.device)
    product = torch.ops.onednn.qlinear_pointwise
    answer, nothing = (1.0, 0, torch.float32), ("none", [], "")

    def multiply(operands: Tensor) -> Tensor:
        given = (operands, 1.0, offset)
        sums = product(*given, first, worth, zeros, None, *answer, *nothing)
        for weight, worth_of in others:
            added = (sums, None, *answer, 1.0, 0, "sum", 1.0)
            sums = product.binary(*given, weight, worth_of, zeros, *added, *nothing)
        return sums

    return multiply


def _by_float32(whole: Tensor, steps: Tensor, size: int, offset: int) -> Product:
    weight, worth = whole.float().contiguous(), steps.float()
    return lambda operands: torch.nn.functional.linear(operands.float().sub_(offset), weight).mul_(worth)


def _by_float32_digits(whole: Tensor, steps: Tensor, size: int, offset: int) -> Product:
    products = [_by_float32(digit, steps * 256**place, 1, offset) for place, digit in enumerate(digits_of(whole, size))]

    def multiply(operands: Tensor) -> Tensor:
        first, *others = (product(operands) for product in reversed(products))
        for sums in others:
            first += sums
        return first

    return multiply


def _longest(largest: int) -> int:
    """Inputs up to which sums of operands up to ``largest`` times bytes stay within 32 bits."""
    return (2**31 - 1) // (128 * largest)


INTEGERS = (
    Path("8-bit", _by_onednn, 128, longest=_longest(255)),
    Path("7-bit", _by_onednn, 64, bytes=1, longest=_longest(127)),
)
FLOATS = (Path("float32", _by_float32, 128), Path("float32-digits", _by_float32_digits, 128))
# elsewhere oneDNN may run a reference loop that takes minutes; nobody has seen it
PATHS = (*INTEGERS, *FLOATS) if platform.machine().lower() in ("x86_64", "amd64") else FLOATS
