"""Single neurons: closed forms, equivalence with QCFS, grids and gradients (DESIGN §8, "One neuron")."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fas.neurons import Held, codes, ones_first, qcfs, rate_mean_rows, rate_step_rows, sigma_delta
from fas.neurons.held import dtype_for
from fas.neurons.rotation import Rotation, block_of, rotate
from fas.neurons.sigma_delta import dead_zones
from fas.steps import default_steps, is_complete

LEVELS = st.integers(1, 33)
SEEDS = st.integers(0, 2**31)
HALF = torch.tensor(0.5, dtype=torch.float64)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(seed: int, *shape: int) -> Tensor:
    return (normal(seed + 1, *shape) * 0.7).exp()


def far_from_ties(u: Tensor) -> Tensor:
    """``u`` (in units of the grid) moved off the points where rounding of a floating-point number would decide."""
    near = (u - 0.5 - (u - 0.5).round()).abs() < 1e-6
    return torch.where(near, u + 1e-3, u)


# QCFS


@given(seed=SEEDS, levels=LEVELS, signed=st.booleans())
def test_qcfs_gives_the_nearest_grid_point(seed: int, levels: int, signed: bool) -> None:
    x, scale = 2 * normal(seed, 5, 4), positive(seed, 4)
    grid = torch.arange(-levels if signed else 0, levels + 1, dtype=torch.float64)[:, None, None] / levels * scale
    nearest = (grid - x).abs().min(0).values
    out = qcfs(x, scale, levels, signed)
    torch.testing.assert_close((out - x).abs(), nearest, rtol=0, atol=1e-12)
    assert ((grid - out).abs().min(0).values < 1e-12).all()


@given(numerator=st.integers(-400, 400), exponent=st.integers(-3, 3), levels=st.integers(1, 16), signed=st.booleans())
def test_qcfs_equals_exact_arithmetic_ties_included(numerator: int, exponent: int, levels: int, signed: bool) -> None:
    unit = Fraction(2) ** exponent  # exact in floating point, so that ties are ties
    x = Fraction(numerator, 4) * unit
    expected = min(max(math.floor(x / unit + Fraction(1, 2)), -levels if signed else 0), levels)
    scale = torch.tensor([float(levels * unit)], dtype=torch.float64)
    value = torch.tensor([float(x)], dtype=torch.float64)
    assert codes(value, scale, levels, signed).item() == expected
    assert qcfs(value, scale, levels, signed).item() == float(expected * unit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_qcfs_keeps_shape_and_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, dtype=dtype)
    out = qcfs(x, torch.ones(4, dtype=dtype), 4, True)
    assert out.shape == x.shape
    assert out.dtype == dtype


@given(seed=SEEDS, levels=LEVELS, signed=st.booleans())
def test_qcfs_gradients_equal_closed_form(seed: int, levels: int, signed: bool) -> None:
    x, scale = (2 * normal(seed, 6, 3)).requires_grad_(), positive(seed, 3).requires_grad_()
    weight = normal(seed + 2, 6, 3)
    out = qcfs(x, scale, levels, signed)
    (out * weight).sum().backward()
    with torch.no_grad():
        low = -scale if signed else torch.zeros_like(scale)
        inside = (x >= low) & (x <= scale)
        by_scale = torch.where(inside, (out - x) / scale, torch.where(x > scale, 1.0, -1.0 if signed else 0.0))
    torch.testing.assert_close(x.grad, weight * inside)
    torch.testing.assert_close(scale.grad, (weight * by_scale).sum(0))


def test_qcfs_gradient_of_a_shared_scale_is_summed() -> None:
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    qcfs(torch.full((2, 5), 3.0, dtype=torch.float64), scale, 4, True).sum().backward()
    assert scale.grad is not None
    assert scale.grad.tolist() == [10.0]


# Rate


@given(seed=SEEDS, steps=LEVELS, signed=st.booleans())
def test_integrate_and_fire_follows_its_voltage(seed: int, steps: int, signed: bool) -> None:
    """The trace v ← v + x_t − θ·s_t, and its closed form v₀ + q_t − θ·N_t."""
    x, threshold, v_init = normal(seed, steps, 7), positive(seed, 7), normal(seed + 3, 7).sigmoid()
    _, spikes = rate_step_rows(x, threshold, v_init, signed)
    v = v_init * threshold
    for t in range(steps):
        v = v + x[t]
        fires = (v >= threshold).double() - (signed * (v < 0).double())
        margin = torch.minimum((v - threshold).abs(), v.abs())
        assert ((spikes[t] == fires) | (margin < 1e-9)).all()
        v = v - threshold * spikes[t]
        closed = v_init * threshold + x[: t + 1].sum(0) - threshold * spikes[: t + 1].sum(0)
        torch.testing.assert_close(v, closed, rtol=0, atol=1e-9)


@given(seed=SEEDS, levels=LEVELS, signed=st.booleans())
def test_integrate_and_fire_equals_qcfs_for_varying_charge(seed: int, levels: int, signed: bool) -> None:
    """L = T, v₀ = ½: the count is the QCFS code of the mean, whatever the order in which the charge arrives."""
    generator = torch.Generator().manual_seed(seed)
    threshold = positive(seed, 6)
    share = torch.rand(levels, 6, generator=generator, dtype=torch.float64)
    charge = ((2 * share - 1) if signed else share) * threshold
    total = charge.sum(0) / threshold
    charge[0] += (far_from_ties(total) - total) * threshold
    assume(bool((charge[0].abs() <= threshold).all()))
    _, spikes = rate_step_rows(charge, threshold, HALF, signed)
    assert torch.equal(spikes.sum(0), codes(charge.mean(0), threshold, levels, signed))
    assert set(spikes.unique().tolist()) <= ({-1.0, 0.0, 1.0} if signed else {0.0, 1.0})


@given(seed=SEEDS, levels=LEVELS, signed=st.booleans())
def test_integrate_and_fire_equals_qcfs_for_constant_charge(seed: int, levels: int, signed: bool) -> None:
    """Also beyond the grid, where both saturate."""
    threshold = positive(seed, 6)
    x = far_from_ties(2 * normal(seed, 6) * levels) / levels * threshold
    rows, spikes = rate_mean_rows(x.expand(levels, 6), threshold, HALF, signed)
    assert torch.equal(spikes.sum(0), codes(x, threshold, levels, signed))
    torch.testing.assert_close(rows[-1], qcfs(x, threshold, levels, signed))


def test_integrate_and_fire_is_exact_on_ties() -> None:
    unit = torch.arange(-8, 9, dtype=torch.float64) / 16  # half grid steps of θ = 1, L = T = 8
    for signed in (True, False):
        _, spikes = rate_mean_rows(unit.expand(8, 17), torch.ones(17, dtype=torch.float64), HALF, signed)
        assert torch.equal(spikes.sum(0), codes(unit, torch.ones(17), 8, signed))


@given(seed=SEEDS, steps=LEVELS, signed=st.booleans())
def test_mean_rows_are_running_means_of_step_rows(seed: int, steps: int, signed: bool) -> None:
    charge, threshold = normal(seed, steps, 3, 5), positive(seed, 5)
    count = torch.arange(1, steps + 1, dtype=torch.float64)[:, None, None]
    step_rows, step_spikes = rate_step_rows(charge, threshold, HALF, signed)
    mean_rows, mean_spikes = rate_mean_rows(charge.cumsum(0) / count, threshold, HALF, signed)
    assert torch.equal(step_spikes, mean_spikes)
    torch.testing.assert_close(mean_rows, step_rows.cumsum(0) / count)
    torch.testing.assert_close(step_rows, step_spikes * threshold)


@given(seed=SEEDS, timesteps=LEVELS)
def test_ones_first_trains(seed: int, timesteps: int) -> None:
    counts = (normal(seed, 4, 3) * timesteps).round().clamp(-timesteps, timesteps)
    trains = ones_first(counts, timesteps)
    assert trains.shape == (timesteps, 4, 3)
    for index in range(12):
        count, train = int(counts.flatten()[index]), trains.flatten(1)[:, index].tolist()
        assert train == [math.copysign(1, count)] * abs(count) + [0.0] * (timesteps - abs(count))


# Sigma-delta


@st.composite
def complete_schedules(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    levels = draw(st.integers(1, 16))
    steps = tuple(draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=7))) + (1,) * draw(
        st.integers(1, 12)
    )
    assume(is_complete(steps, levels))
    return steps, levels


def settles(steps: tuple[int, ...], levels: int, signed: bool) -> None:
    """Every constant input: all decisions change at multiples of half a grid step only, so quarters show them all."""
    u = torch.arange(-4 * levels - 8, 4 * levels + 9, dtype=torch.float64) / 4
    ones = torch.ones_like(u)
    rows, spikes = sigma_delta(u.expand(len(steps), -1), levels * ones, HALF, 0 * ones, steps, levels, signed)
    expected = codes(u, levels * ones, levels, signed)
    assert torch.equal(rows[-1], expected), f"{steps} with {levels} levels: {u[rows[-1] != expected].tolist()}"
    assert torch.equal((spikes * torch.tensor(steps)[:, None]).sum(0), expected)


@given(schedule=complete_schedules(), signed=st.booleans())
@settings(max_examples=200)
def test_complete_schedules_settle_on_qcfs(schedule: tuple[tuple[int, ...], int], signed: bool) -> None:
    settles(*schedule, signed)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 7, 8, 15, 16])
def test_default_and_unit_schedules_settle_on_qcfs(levels: int, signed: bool) -> None:
    settles((1,) * levels, levels, signed)
    for timesteps in range(1, 20):
        steps = default_steps(levels, timesteps)
        if is_complete(steps, levels):
            settles(steps, levels, signed)


ZONES = st.sampled_from([0.0, 0.125, 0.25, 0.375, 0.5])


@given(
    seed=SEEDS,
    levels=st.integers(1, 16),
    signed=st.booleans(),
    zone=ZONES,
    steps=st.lists(st.sampled_from([1, 2, 4, 8])),
)
def test_sigma_delta_never_leaves_the_grid(seed: int, levels: int, signed: bool, zone: float, steps: list[int]) -> None:
    """Whatever the input, θ, v₀, dead zone and integer a₀: what is recorded is what moved, and it stays on the grid."""
    assume(steps)
    low = -levels if signed else 0
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(low, levels + 1, (9,), generator=generator).double()
    threshold, v_init = positive(seed, 9), normal(seed + 4, 9).sigmoid()
    x = 3 * normal(seed, len(steps), 2, 9)
    rows, spikes = sigma_delta(x, threshold, v_init, start, steps, levels, signed, [zone] * len(steps))
    states = rows / (threshold / levels)
    torch.testing.assert_close(states, states.round(), rtol=0, atol=1e-9)
    assert states.round().min() >= low
    assert states.round().max() <= levels
    assert set(spikes.unique().tolist()) <= {-1.0, 0.0, 1.0}
    moved = (spikes * torch.tensor(steps)[:, None, None]).cumsum(0)
    torch.testing.assert_close(states, start + moved, rtol=0, atol=1e-9)


@given(
    seed=SEEDS,
    piece=st.integers(1, 60),
    width=st.integers(1, 5),
    signed=st.booleans(),
    zones=st.tuples(ZONES, ZONES, ZONES),
)
def test_sigma_delta_gives_the_same_bits_piece_by_piece(
    seed: int, piece: int, width: int, signed: bool, zones: tuple[float, ...]
) -> None:
    x = 3 * normal(seed, 3, 2, 7, width).transpose(1, 2).float()
    threshold, v_init = positive(seed, width).float(), normal(seed + 4, width).sigmoid().float()
    arguments = threshold, v_init, torch.ones(width), (4, 2, 1), 5, signed, zones
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["fas.neurons.pieces"], "PIECE", piece)
        plain = sigma_delta(x, *arguments)
    for found, expected in zip(plain, sigma_delta(x, *arguments), strict=True):
        assert torch.equal(found, expected)


@given(seed=SEEDS, each=st.integers(1, 3), signed=st.booleans(), gradient=st.booleans())
def test_neurons_that_share_a_channel_fire_one_after_the_other(
    seed: int, each: int, signed: bool, gradient: bool
) -> None:
    """In a timestep of P neurons happens what would in P timesteps of one on the same input."""
    x = 3 * normal(seed, 3, 2, 4)
    rest = positive(seed, 4), normal(seed + 4, 4).sigmoid(), torch.ones(4), (4, 4, 2, 2, 2, 1, 1, 1, 1)[-3 * each :]
    rows, spikes = sigma_delta(x.requires_grad_(gradient), *rest, 5, signed)
    each_step, expected = sigma_delta(x.repeat_interleave(each, 0), *rest, 5, signed)
    assert torch.equal(rows, each_step[each - 1 :: each])
    assert torch.equal(spikes, expected)


@given(seed=SEEDS, signed=st.booleans(), zones=st.tuples(ZONES, ZONES, ZONES))
def test_a_dead_zone_is_what_a_spike_must_exceed(seed: int, signed: bool, zones: tuple[float, ...]) -> None:
    """[u ≥ 1 + δ] − [u < −δ], one value at a time."""
    x, steps = 3 * normal(seed, 3, 9), (4, 2, 1)
    one, start = torch.ones(9, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
    rows, _ = sigma_delta(x, 5 * one, HALF, start, steps, 5, signed, zones)
    for at in range(9):
        state = 0
        for t in range(3):
            goal = min(max(float(x[t, at]), -5 if signed else 0), 5)
            u = (goal - state) / steps[t] + 0.5
            moved = state + steps[t] * ((u >= 1 + zones[t]) - (u < -zones[t]))
            state = moved if (-5 if signed else 0) <= moved <= 5 else state
            assert rows[t, at] == state


def test_a_dead_zone_spares_a_spike_and_its_correction() -> None:
    """1 on steps 2, 1, 1: from u = 1 it would go to 2 and back; with a dead zone it waits for the step 1."""
    one = torch.ones(1, dtype=torch.float64)
    arguments = one.expand(3, 1), 4 * one, HALF, 0 * one, (2, 1, 1), 4, True
    assert sigma_delta(*arguments)[1].flatten().tolist() == [1, -1, 0]
    rows, spikes = sigma_delta(*arguments, dead_zones(3, 0.25))
    assert spikes.flatten().tolist() == [0, 1, 0]
    assert rows.flatten().tolist() == [0, 1, 1]


def test_sigma_delta_step_equals_its_definition() -> None:
    """One neuron by hand: λ = 8, L = 8, steps 4, 2, 1; 5.6 becomes 4 + 2 + 0; 8.9 would be 8, out of reach."""
    x = torch.tensor([5.6, 8.9, -3.0, 1.9], dtype=torch.float64)
    ones = torch.ones(4, dtype=torch.float64)
    rows, spikes = sigma_delta(x.expand(3, 4), 8 * ones, HALF, 0 * ones, (4, 2, 1), 8, True)
    assert spikes.T.tolist() == [[1, 1, 0], [1, 1, 1], [-1, 1, -1], [0, 1, 0]]
    assert rows.T.tolist() == [[4, 6, 6], [4, 6, 7], [-4, -2, -3], [0, 2, 2]]


# Held


@given(seed=SEEDS, neurons=st.sampled_from([1, 2, 16, 63, 64, 140]), signed=st.booleans())
def test_what_is_held_counts_as_its_trains(seed: int, neurons: int, signed: bool) -> None:
    """One neuron after another, by whether the number is above its own."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-neurons if signed else 0, neurons + 1, (4, 2, 3, 5), generator=generator)
    held, counted = (
        Held(numbers.to(dtype_for(neurons)), neurons, signed),
        torch.rand(2, 3, 1, generator=generator) < 0.5,
    )
    signs = (1, -1) if signed else (1,)
    full = torch.stack([sign * numbers > i for sign in signs for i in range(neurons)], -2).flatten(-2).int()
    trains = full - torch.cat([torch.zeros_like(full[:1]), full[:-1]])
    assert torch.equal(held.spikes(), trains.to(torch.int8))
    assert torch.equal(held.steps.int(), trains.abs().unflatten(-1, (-1, 5)).sum(-2))
    assert held.each == len(signs) * neurons
    assert torch.equal(held.by_neuron(), trains.abs().flatten(0, -2).sum(0))
    assert torch.equal(held.by_neuron(counted), (trains.abs() * counted).flatten(0, -2).sum(0))


# Rotation


@given(seed=SEEDS, blocks=st.integers(1, 3), exponent=st.integers(0, 9))
def test_rotation_is_orthogonal_and_its_own_inverse(seed: int, blocks: int, exponent: int) -> None:
    width = (2 * blocks - 1) * 2**exponent
    block = Rotation(block_of(width))
    assert block.block == min(2**exponent, 256)
    x, y = normal(seed, 3, width), normal(seed + 1, 3, width)
    torch.testing.assert_close(rotate(rotate(x, block), block), x)
    torch.testing.assert_close((rotate(x, block) * rotate(y, block)).sum(-1), (x * y).sum(-1))


def test_rotation_makes_heavy_tails_cheap_to_quantize() -> None:
    x = normal(0, 2000, 64) ** 3  # kurtosis of single values 231

    def error(values: Tensor) -> float:
        best = [
            (qcfs(values, values.abs().amax(0) * f, 15, True) - values).square().mean() for f in (0.1, 0.2, 0.4, 0.7)
        ]
        return float(min(best))

    assert error(rotate(x, Rotation(64))) < 0.25 * error(x)
