"""A trial of the compiled kernels before they are used: forward bit by bit the PyTorch code, sums equal to rounding.

Tests see the compiler, flags and processor of one machine; this sees those of each.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fas.neurons.native import kernels
from fas.neurons.native.decoding import Dense, Gather, Weights, active, attend

WIDTH, TIMESTEPS = 151, 3
"""Channels are whole vectors, part of one and single ones."""
STRANGE = (float("nan"), float("inf"), -float("inf"), 1e-42, -0.0, 3e38, 0.5)
ROUNDED = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""What sums in another order may be off by, of the largest."""
BOUNDS = (-8, 8)

Trials = Iterator[tuple[str, bool]]


def wrong_kernels() -> list[str]:
    """Names of the kernels that do not compute here what they should."""
    # whatever the caller traces, and wherever it makes its tensors
    with torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes():
        random = torch.Generator().manual_seed(0)
        return sorted({name for dtype in kernels.KINDS for name, right in _trials(dtype, random) if not right})


def _trials(dtype: torch.dtype, random: torch.Generator) -> Trials:
    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float32, device="cpu")

    unit, offset = drawn(WIDTH).abs() * 0.3 + 0.05, drawn(WIDTH).sigmoid()
    rows = drawn(TIMESTEPS, 2, WIDTH)
    rows[:, 1] = (rows[:, 1] * 8).round() / 2 * unit  # at the edges between codes
    yield from _gradients(rows.to(dtype), drawn(*rows.shape).to(dtype), unit, offset)
    yield "fas_count", _counts(rows[:, 1].to(dtype), unit)
    rows[1, 0, : len(STRANGE)] = torch.tensor(STRANGE, device="cpu")
    yield from _neurons(rows.to(dtype), unit, offset)
    yield from _products(drawn(5, WIDTH).to(dtype), drawn(WIDTH, 37), drawn(37))
    yield "fas_attend", _attends(*drawn(3, 2, 6, 21, 37).to(dtype))


def _neurons(rows: Tensor, unit: Tensor, offset: Tensor) -> Trials:
    tracking, firing = (importlib.import_module(f"fas.neurons.{name}") for name in ("sigma_delta", "integrate_fire"))
    steps, zones = [4.0, 2.0, 1.0], [0.25, 0.0, 0.0]
    for start in (0, 9):  # within the bounds and beyond
        case = (rows, unit, offset, torch.full_like(unit, start), steps, BOUNDS, zones)
        out, spikes = tracking._track(*case)
        found = kernels.track(*case)
        yield "fas_sigma_delta", _same(found[0], out) and _same(found[1], spikes)
        yield "fas_sigma_delta", _same(kernels.track(*case, want=False)[0], out)
    for signed, mean in ((True, True), (True, False), (False, True), (False, False)):
        out, spikes = firing._rows(rows, unit, offset, signed, mean)
        found = kernels.fire(rows, unit, offset, signed, mean)
        yield "fas_fire", _same(found[0], out) and _same(found[1], spikes)
    codes = (rows / unit + 0.5).floor().clamp(*BOUNDS)
    yield "fas_quantize", _same(kernels.quantize(rows, unit, BOUNDS), (codes * unit).to(rows.dtype))


def _gradients(rows: Tensor, grad: Tensor, unit: Tensor, offset: Tensor) -> Trials:
    tracking, firing = (importlib.import_module(f"fas.neurons.{name}") for name in ("sigma_delta", "integrate_fire"))
    case = (grad, rows, unit, offset, torch.zeros_like(unit), [4.0, 2.0, 1.0], BOUNDS, [0.25, 0.0, 0.0])
    pairs = zip(kernels.track_back(*case), tracking._gradients(*case), strict=True)
    yield "fas_sigma_delta_back", all(_near(*pair) for pair in pairs)
    pairs = zip(kernels.fire_back(*case[:4], True, True), firing._gradients(*case[:4], True, True), strict=True)
    yield "fas_fire_back", all(_near(*pair) for pair in pairs)
    u = rows / unit
    inside = (u >= BOUNDS[0]) & (u <= BOUNDS[1])
    by_unit = (grad * ((u + 0.5).floor().clamp(*BOUNDS) - torch.where(inside, u, 0))).sum((0, 1))
    found = kernels.quantize_back(grad, rows, unit, BOUNDS)
    yield "fas_quantize_back", _same(found[0], (grad * inside).to(rows.dtype)) and _near(found[1], by_unit)


def _counts(rows: Tensor, unit: Tensor) -> bool:
    found = [kernels.count(rows, unit, offset) for offset in (64, 128)]
    wanted = [(rows / unit + (offset + 0.5)).floor().to(torch.uint8) for offset in (64, 128)]
    return all(_same(*pair) for pair in zip(found, wanted, strict=True))


def _products(x: Tensor, weight: Tensor, bias: Tensor) -> Trials:
    x[:, ::3] = 0
    yield "fas_active", active(x) == int((x != 0).any(0).sum())
    for dtype in (torch.float32, torch.bfloat16, torch.int16, torch.int8):
        kept = (weight * 30).to(dtype)
        wanted = x.double() @ kept.double() + bias.double()
        for rows in (1, 2, 3, 5):
            yield "fas_gather", _near(Gather(Weights(kept, bias))(x[:rows]), wanted[:rows])
    kept = weight.T.contiguous().to(x.dtype)
    yield "fas_dense", _near(Dense(kept, bias)(x), x.double() @ kept.double().T + bias.double())


def _attends(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    query, hidden = query[:, :, 0], torch.zeros(2, 1, 21, device="cpu")
    hidden[1, 0, 5:9] = -float("inf")
    scores = (keys.double() @ query.double().unsqueeze(-1)).squeeze(-1) * 0.3 + hidden
    wanted = (scores.softmax(-1).unsqueeze(2) @ values.double()).squeeze(2)
    return _near(attend(query, keys, values, hidden, 0.3), wanted)


def _same(found: Tensor, wanted: Tensor) -> bool:
    return bool(((found == wanted) | (found.isnan() & wanted.isnan())).all()) and found.dtype == wanted.dtype


def _near(found: Tensor, wanted: Tensor) -> bool:
    size = float(wanted.abs().max()) + 1.0
    return bool(((found.double() - wanted.double()).abs() <= ROUNDED[found.dtype] * size).all())
