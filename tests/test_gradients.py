"""Gradients of neurons through time, against autograd on step loops that share no code with the package."""

import sys
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fas.neurons import rate_mean_rows, rate_step_rows, sigma_delta
from fas.neurons.surrogate import ternary_slope

SEEDS = st.integers(0, 2**31)
ZONES = st.sampled_from([0.0, 0.125, 0.25, 0.5])


class Spike(torch.autograd.Function):
    """The spike with its triangles, written out."""

    @staticmethod
    def forward(ctx, v: Tensor, signed: bool) -> Tensor:
        ctx.save_for_backward(v)
        ctx.signed = signed
        return (v >= 1).to(v.dtype) - ((v < 0) & torch.tensor(signed)).to(v.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        upper, lower = torch.relu(1 - (v - 1).abs()), torch.relu(1 - v.abs())
        return grad * (upper + lower if ctx.signed else upper), None


def tracked(rows, theta, v_init, a_init, steps, levels, signed, zones):
    """sigma_delta by autograd."""
    low, each = (-levels if signed else 0), len(steps) // len(rows)
    target = (rows / (theta / levels)).clamp(low, levels)
    state, states = a_init.expand_as(target[0]), []
    for micro, k in enumerate(steps):
        u = (target[micro // each] - state) / k + v_init
        u = torch.where(u >= 0.5, u - zones[micro], u + zones[micro])
        spike = Spike.apply(u, True)
        moved = state + k * spike
        state = state + k * torch.where((moved >= low) & (moved <= levels), spike, torch.zeros_like(spike))
        if micro % each == each - 1:
            states.append(state)
    return torch.stack(states) * (theta / levels)


def integrated(rows, theta, v_init, signed, mean):
    """Both rate codings by autograd."""
    count, out = torch.zeros_like(rows[0]), []
    charges = [t * x for t, x in enumerate(rows, 1)] if mean else list(accumulate(rows))
    for t, charge in enumerate(charges, 1):
        spike = Spike.apply(charge / theta + v_init - count, signed)
        count = count + spike
        out.append(count / t * theta if mean else spike * theta)
    return torch.stack(out)


def gradients_of(function, leaves: list[Tensor], weight: Tensor) -> list[Tensor]:
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    (function(*leaves) * weight).sum().backward()
    return [leaf.grad for leaf in leaves]


def drawn(seed: int, timesteps: int) -> tuple[list[Tensor], Tensor]:
    """Rows ``[T, 2, 5, 3]``, θ, v₀ ``[3]``, and the weights of the outputs."""
    made = torch.Generator().manual_seed(seed)
    rows = 2 * torch.randn(timesteps, 5, 2, 3, generator=made, dtype=torch.float64).transpose(1, 2)
    theta, v_init = (0.5 + torch.rand(3, generator=made, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(rows.shape, generator=made, dtype=torch.float64)
    return [rows, theta, v_init - 0.5], weight


@settings(deadline=None, max_examples=60)
@given(
    seed=SEEDS,
    each=st.integers(1, 3),
    signed=st.booleans(),
    start=st.integers(-2, 2),
    zones=st.lists(ZONES, min_size=9, max_size=9),
    piece=st.integers(1, 40),
)
def test_sigma_delta(seed: int, each: int, signed: bool, start: int, zones: list[float], piece: int) -> None:
    leaves, weight = drawn(seed, 3)
    steps = (8, 4, 4, 2, 2, 1, 1, 2, 1)[-3 * each :]
    a_init = torch.full((3,), float(start if signed else abs(start)), dtype=torch.float64)
    rest = a_init, steps, 5, signed, zones[: 3 * each]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["fas.neurons.pieces"], "PIECE", piece)
        patch.setattr(sys.modules["fas.neurons.sigma_delta"], "BACKWARD", 41 - piece)
        found = gradients_of(lambda *x: sigma_delta(*x, *rest)[0], leaves, weight)
    for mine, expected in zip(found, gradients_of(lambda *x: tracked(*x, *rest), leaves, weight), strict=True):
        torch.testing.assert_close(mine, expected)


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, timesteps=st.integers(1, 6), signed=st.booleans(), mean=st.booleans(), piece=st.integers(1, 40))
def test_rate(seed: int, timesteps: int, signed: bool, mean: bool, piece: int) -> None:
    leaves, weight = drawn(seed, timesteps)
    neuron = rate_mean_rows if mean else rate_step_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["fas.neurons.pieces"], "PIECE", piece)
        patch.setattr(sys.modules["fas.neurons.integrate_fire"], "BACKWARD", 41 - piece)
        found = gradients_of(lambda *x: neuron(*x, signed)[0], leaves, weight)
    expected = gradients_of(lambda *x: integrated(*x, signed, mean), leaves, weight)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_triangles() -> None:
    v = torch.linspace(-1.5, 2.5, 81, dtype=torch.float64)
    for signed in (True, False):
        slopes = [max(0, 1 - abs(e - 1)) + (max(0, 1 - abs(e)) if signed else 0) for e in v.tolist()]
        torch.testing.assert_close(ternary_slope(v, signed), torch.tensor(slopes, dtype=torch.float64))


@pytest.mark.parametrize("coding", ["mean", "step", "sigma_delta"])
def test_gradients_reach_every_parameter(coding: str) -> None:
    (x, threshold, v_init), weight = drawn(0, 4)
    neuron = {"mean": rate_mean_rows, "step": rate_step_rows}.get(coding)
    if neuron is None:
        found = gradients_of(
            lambda *p: sigma_delta(*p, torch.zeros(3), (4, 2, 2, 1), 8, True)[0], [x, threshold, v_init], weight
        )
    else:
        found = gradients_of(lambda *p: neuron(*p, True)[0], [x, threshold, v_init], weight)
    for grad in found:
        assert torch.isfinite(grad).all()
        assert grad.abs().sum() > 0
