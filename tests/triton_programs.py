"""Triton programs against the PyTorch code: equal bit by bit on the way forward, to rounding on the way back.

`test_triton` runs this file, in a process of its own: Triton decides when it is imported whether its interpreter runs programs.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from neuron_cases import cases, near, same, tracking
from torch import Tensor

from fas.config import SpikingConfig
from fas.neurons import Clock, Site, fused, integrate_fire, qcfs, rate_step_rows, sigma_delta
from fas.neurons.triton import kernels

sigma_delta_module = importlib.import_module("fas.neurons.sigma_delta")  # the package holds a function of that name

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
MANY = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SHARES = [(2048, 512, 128), (4, 64, 32)]
"""Programs, values of a tile and channels of a tile: one tile a program, and several."""


def placed(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in case.items()}


def equal(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    return all(same(*pair) for pair in zip(found, wanted, strict=True))


@MANY
@given(cases())
def test_tracking_is_the_same(case: dict[str, Any]) -> None:
    arguments = tracking(placed(case))
    wanted = sigma_delta_module._track(*arguments)
    assert equal(kernels.track(*arguments), wanted)
    silent = kernels.track(*arguments, want=False)
    assert same(silent[0], wanted[0])
    assert silent[1].numel() == 0


@MANY
@given(cases())
def test_firing_is_the_same(case: dict[str, Any]) -> None:
    arguments = [placed(case)[name] for name in ("rows", "unit", "v_init", "signed", "mean")]
    wanted = integrate_fire._rows(*arguments)
    assert equal(kernels.fire(*arguments), wanted)
    silent = kernels.fire(*arguments, want=False)
    assert same(silent[0], wanted[0])
    assert silent[1].numel() == 0


@MANY
@given(cases())
def test_quantizing_is_the_same(case: dict[str, Any]) -> None:
    x, unit, (low, high) = (placed(case)[name] for name in ("rows", "unit", "bounds"))
    wanted = ((x.float() / unit + 0.5).floor().clamp(low, high) * unit).to(x.dtype)
    assert same(kernels.quantize(x, unit, (low, high)), wanted)


@pytest.mark.parametrize("shares", SHARES, ids=["tile", "tiles"])
@MANY
@given(cases())
def test_gradients_are_the_same(shares: tuple[int, int, int], case: dict[str, Any]) -> None:
    case = placed(case)
    rows = case["rows"]
    grad = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)).to(rows)
    arguments = [case[name] for name in ("rows", "unit", "v_init", "signed", "mean")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("PROGRAMS", "TILE", "CHANNELS"), shares, strict=True):
            patch.setattr(kernels, name, value)
        found = [kernels.track_back(grad, *tracking(case)), kernels.fire_back(grad, *arguments)]
    wanted = [sigma_delta_module._gradients(grad, *tracking(case)), integrate_fire._gradients(grad, *arguments)]
    for one, other in zip(found, wanted, strict=True):
        assert all(near(*pair) for pair in zip(one, other, strict=True))


@MANY
@given(cases())
def test_gradients_of_qcfs_are_the_same(case: dict[str, Any]) -> None:
    case, grads = placed(case), []
    like = case["rows"].dtype
    for dtypes in ((like, torch.float32), (torch.float64, torch.float64)):  # what the kernels do not take: float64
        x, scale = (case[name].to(d).clone().requires_grad_() for name, d in zip(("rows", "unit"), dtypes, strict=True))
        weights = torch.linspace(-1, 1, x.numel(), device=DEVICE).view_as(x).to(like)
        with pytest.MonkeyPatch.context() as patch:
            use_triton(patch)
            (qcfs(x, scale, 8, case["signed"]) * weights).sum().backward()
        grads.append([x.grad.to(like), scale.grad.float()])
    assert all(near(*pair) for pair in zip(*grads, strict=True))


def use_triton(patch: pytest.MonkeyPatch) -> None:
    """On the device of these tests, whichever it is."""
    patch.setattr(fused, "native", kernels)
    patch.setattr(kernels, "takes", lambda *values: all(v.dtype in kernels._DTYPES for v in values))


@pytest.mark.parametrize("coding", ["sigma_delta", "rate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_neuron_is_the_same_through_autograd(
    coding: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 9, 33, generator=generator).to(DEVICE, dtype)
    constants = [(torch.rand(33, generator=generator) + 0.3).to(DEVICE) for _ in range(2)]
    start, weights = torch.zeros(33, device=DEVICE), torch.randn(4, 9, 33, generator=generator).to(DEVICE)
    results = []
    for triton in (False, True):
        if triton:
            use_triton(monkeypatch)
        else:
            monkeypatch.setattr(fused, "kernels_for", lambda *values: None)
            for module in (sigma_delta_module, integrate_fire):
                monkeypatch.setattr(module, "kernels_for", lambda *values: None)
        rows, threshold, v_init = (value.clone().requires_grad_() for value in (values, *constants))
        if coding == "sigma_delta":
            out, spikes = sigma_delta(
                rows, threshold, v_init, start, [4, 2, 2, 1, 1, 1, 1, 1], 8, True, [0.25] * 7 + [0]
            )
        else:
            out, spikes = rate_step_rows(rows, threshold, v_init, True)
        (out * weights).sum().backward()
        results.append((out, spikes, rows.grad, threshold.grad, v_init.grad))
        monkeypatch.undo()
    (out, spikes, *grads), (found, fired, *others) = results
    assert same(found, out)
    assert same(fired, spikes)
    assert all(near(*pair) for pair in zip(others, grads, strict=True))


@pytest.mark.parametrize("coding", ["sigma_delta", "rate"])
@pytest.mark.parametrize("schedule", ["synchronous", "layerwise"])
def test_a_site_in_bf16_is_one_that_widens(coding: Any, schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(SpikingConfig(coding=coding, schedule=schedule, timesteps=8, levels=8), "snn", depth=1)
    site = Site("s", 70, True, 1, clock).to(DEVICE)
    rows = torch.randn(16, 3, 70, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.bfloat16)
    use_triton(monkeypatch)
    found = site(rows)
    monkeypatch.setattr(kernels, "takes", lambda *values: False)
    assert same(found, site(rows))


def test_what_is_no_number_stays_none() -> None:
    rows = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]], device=DEVICE).expand(2, 1, 4)
    constants = [torch.full((4,), value, device=DEVICE) for value in (0.2, 0.5, 0.0)]
    for dtype in (torch.float32, torch.bfloat16):
        given = rows.to(dtype)
        for zones in ([0.0, 0.0], [0.25, 0.0]):
            out, _ = kernels.track(given, *constants, [1.0, 1.0], (-8, 8), zones)
            wanted, _ = sigma_delta_module._track(given, *constants, [1.0, 1.0], (-8, 8), zones)
            assert torch.equal(out.isnan(), wanted.isnan())
            assert torch.equal(out.nan_to_num(), wanted.nan_to_num())
        out = kernels.quantize(given, constants[0], (-8, 8))
        assert out[0].isnan().tolist() == [[True, False, False, False]]


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    """What lies just below, at and just above the middle between two neighbours, all significands twice."""
    neighbours = torch.arange(0x3F80, 0x3F80 + 256, dtype=torch.int32)
    for between in (0x7FFF, 0x8000, 0x8001):
        unit = ((neighbours << 16) | between).view(torch.float32).to(DEVICE)
        wanted = unit.to(torch.bfloat16)[None]
        assert same(kernels.quantize(wanted, unit, (-8, 8)), wanted)  # each is once its unit


def test_charges_are_added_up_in_float32_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.cumsum does there, one timestep after the other."""
    import triton.language as tl

    monkeypatch.setattr(kernels, "_sum_type", lambda rows: tl.float32)
    rows = torch.randn(9, 40, 21, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    theta, offset = torch.full((21,), 0.31, device=DEVICE), torch.full((21,), 0.5, device=DEVICE)
    total, counts = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
    _, spikes = kernels.fire(rows, theta, offset, True, False)
    for row, found in zip(rows, spikes, strict=True):
        total = total + row
        left = total / theta + offset - counts
        assert torch.equal(found, (left >= 1).float() - (left < 0).float())
        counts += found
    grad = torch.ones_like(rows)
    for pair in zip(
        kernels.fire_back(grad, rows, theta, offset, True, False),
        integrate_fire._gradients(grad, rows, theta, offset, True, False),
        strict=True,
    ):
        assert near(*pair)


def test_the_programs_are_found_to_work() -> None:
    assert kernels.works(torch.device(DEVICE))


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU here")
def test_nothing_but_plain_rows_on_one_gpu_is_taken() -> None:
    rows = torch.zeros(2, 3, device=DEVICE)
    assert fused.kernels_for(rows, rows[0]) is kernels
    assert fused.kernels_for(rows.double()) is None
    assert fused.kernels_for(rows, torch.zeros(3)) is None
    assert fused.kernels_for(rows[:0]) is None
