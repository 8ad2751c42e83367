"""Groups of neurons for nonlinear functions: fit, range reduction, softmax and norms, evaluated exactly and by spikes."""

from __future__ import annotations

import copy
import math
import pickle
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fas.config import SpikingConfig
from fas.errors import FasError
from fas.neurons import Clock, Site
from fas.operators import (
    Group,
    SpikingGroup,
    activation,
    activation_group,
    exp2_group,
    exp2_negative,
    fit_group,
    layer_norm,
    reciprocal,
    reciprocal_group,
    rms_norm,
    rsqrt,
    rsqrt_group,
    softmax,
)
from fas.operators.fit import spaced_knots
from fas.operators.group import charges
from fas.operators.ranges import LAST_OCTAVE, Reduced, reduce_exp2, reduce_reciprocal, reduce_rsqrt

EXP, RECIPROCAL, RSQRT = exp2_group(), reciprocal_group(), rsqrt_group()
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
ALL_GROUPS: dict[str, Callable[[], Group]] = {
    "exp2": exp2_group, "reciprocal": reciprocal_group, "rsqrt": rsqrt_group,
    **{kind: (lambda kind=kind: activation_group(kind)) for kind in ACTIVATIONS},
}  # fmt: skip


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clock(stage: str = "snn", **changes: object) -> Clock:
    config = SpikingConfig(**{"levels": 15, "timesteps": 8} | changes)
    return Clock(config, stage=stage, depth=1)  # type: ignore[arg-type]


def over_time(x: Tensor, timesteps: int) -> Tensor:
    return x.repeat(timesteps, *[1] * (x.ndim - 1))


# Fit


@pytest.mark.parametrize("name", ALL_GROUPS)
def test_fitting_is_fast_small_and_deterministic(name: str) -> None:
    start = time.process_time()  # of this process alone, whatever else runs
    first = ALL_GROUPS[name]()
    assert time.process_time() - start < 1
    second = ALL_GROUPS[name]()
    assert first.neurons <= {"exp2": 4, "reciprocal": 8, "rsqrt": 8}.get(name, 16)
    for tensor, again in zip(vars(first).values(), vars(second).values(), strict=True):
        assert torch.equal(tensor, again)


@pytest.mark.parametrize(
    ("operator", "group", "exact", "low", "high"),
    [
        (exp2_negative, EXP, lambda u: (-u).exp2(), 0, 2),
        (reciprocal, RECIPROCAL, lambda s: 1 / s, 1, 4),
        (rsqrt, RSQRT, torch.rsqrt, 1, 16),
    ],
)
def test_mean_square_error_on_both_octaves(operator, group, exact, low, high) -> None:
    x = torch.linspace(low, high, 20001, dtype=torch.float64)[:-1]
    for octave in x.view(2, -1) if operator is exp2_negative else (x[x < math.sqrt(high)], x[x >= math.sqrt(high)]):
        assert (operator(octave, group) - exact(octave)).square().mean() < 1e-5


@given(penalty=st.floats(1e-8, 1e-2), factor=st.floats(1.5, 100), neurons=st.integers(1, 16))
@settings(max_examples=20)
def test_a_larger_penalty_gives_smaller_readouts(penalty: float, factor: float, neurons: int) -> None:
    small, large = (
        fit_group([lambda a: -a * torch.sigmoid(-a)], 0, 8, neurons, penalty=p) for p in (penalty, factor * penalty)
    )
    assert large.rises.abs().sum() <= small.rises.abs().sum() + 1e-9
    assert all(
        (b <= a + 1e-9).all() for a, b in zip(small.rounding_bounds(15)[1:], large.rounding_bounds(15)[1:], strict=True)
    )


def test_a_penalty_clearly_shrinks_and_in_the_end_silences() -> None:
    sums = [fit_group([torch.sin], 0, 6, 12, penalty=p).rises.abs().sum().item() for p in (0, 1e-3, 1e-2, 1)]
    assert sums[0] > sums[1] > sums[2] > sums[3] == 0


def test_solution_of_the_penalised_fit_is_a_minimum() -> None:
    """Subgradient condition: |∂(½ error²)/∂r_i| = penalty where r_i ≠ 0, at most that where r_i = 0."""
    penalty = 3e-3
    group = fit_group([torch.sin], 0, 6, 9, penalty=penalty)
    grid = torch.linspace(0, 6, 4097, dtype=torch.float64)
    basis = charges(grid, group.corners, group.widths) / group.widths
    slope = basis.mT @ (torch.sin(grid) - group(grid)[:, 0]) / len(grid)
    rises = group.rises[0]
    assert (rises == 0).any()
    torch.testing.assert_close(slope[rises != 0], penalty * rises[rises != 0].sign(), rtol=0, atol=1e-8)
    assert (slope.abs() <= penalty + 1e-8).all()


def test_knots_lie_densest_where_the_function_bends_and_beat_even_ones() -> None:
    grid = torch.linspace(0, 8, 4097, dtype=torch.float64)
    part = -grid * torch.sigmoid(-grid)
    knots = spaced_knots(grid, part[None], 8)
    widths = knots.diff()
    assert (widths > 0).all()
    assert widths[0] < widths[-1] / 3
    straight = spaced_knots(grid, (2 * grid)[None], 8).diff()
    torch.testing.assert_close(straight, torch.ones(8, dtype=torch.float64), rtol=1e-2, atol=0)


@pytest.mark.parametrize(("part", "high", "gain"), [(torch.tanh, 4.0, 2), (lambda a: -a * torch.sigmoid(-a), 8.5, 5)])
def test_segments_by_curvature_have_a_smaller_largest_error_than_equal_ones(part, high: float, gain: float) -> None:
    grid = torch.linspace(0, high, 9001, dtype=torch.float64)
    bent, even = (fit_group([part], 0, high, 12, evenness=evenness) for evenness in (0.1, 1e9))
    assert even.widths.max() / even.widths.min() < 1.001
    errors = [(group(grid)[:, 0] - part(grid)).abs().max() for group in (bent, even)]
    assert gain * errors[0] < errors[1]


def test_a_group_can_be_fitted_while_a_model_is_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        group = exp2_group()
    assert torch.equal(group.readout, EXP.readout)


@pytest.mark.parametrize(
    ("low", "high", "neurons", "message"), [(1, 1, 4, "low < high"), (0, 1, 0, "1 to 16"), (0, 1, 17, "not 17")]
)
def test_impossible_groups_are_refused(low: float, high: float, neurons: int, message: str) -> None:
    with pytest.raises(FasError, match=message):
        fit_group([torch.exp], low, high, neurons)


# Range reduction


REDUCTIONS = [(reduce_exp2, 0.0, 34.0, 0, 1), (reduce_reciprocal, 1e-3, 1e3, 1, 2), (reduce_rsqrt, 1e-3, 1e3, 1, 4)]


@pytest.mark.parametrize(("reduce", "low", "high", "first", "last"), REDUCTIONS)
def test_the_reduced_argument_is_continuous_and_in_range(
    reduce: Callable[[Tensor], Reduced], low: float, high: float, first: float, last: float
) -> None:
    x = torch.logspace(math.log10(low), math.log10(high), 40001, dtype=torch.float64) if low else torch.linspace(
        low, high, 40001, dtype=torch.float64
    )  # fmt: skip
    g = reduce(x).argument
    assert ((g >= first) & (g <= last)).all()
    assert g.max() - g.min() > 0.99 * (last - first)
    jump = g.diff().abs().max()
    assert jump < 3e-3 * (last - first)


@given(octave=st.integers(-20, 20), step=st.floats(1e-6, 1e-3))
def test_crossing_an_octave_moves_the_argument_by_the_step(octave: int, step: float) -> None:
    for reduce, border in (
        (reduce_exp2, float(abs(octave))),
        (reduce_reciprocal, 2.0**octave),
        (reduce_rsqrt, 4.0**octave),
    ):
        width = step if reduce is reduce_exp2 else step * border
        x = torch.tensor([max(border - width, 0), border, border + width], dtype=torch.float64)
        assert reduce(x).argument.diff().abs().max() <= 4.001 * step


@given(octave=st.integers(-15, 15))
def test_the_value_is_continuous_across_octaves_up_to_the_fit(octave: int) -> None:
    for operator, group, border in (
        (exp2_negative, EXP, abs(octave)), (reciprocal, RECIPROCAL, 2.0**octave), (rsqrt, RSQRT, 4.0**octave)
    ):  # fmt: skip
        below, above = operator(torch.tensor([border * (1 - 1e-9), border], dtype=torch.float64), group)
        assert abs(below - above) <= 0.008 * above


@given(exponent=st.floats(-30, 30))
def test_reciprocals_over_sixty_decades(exponent: float) -> None:
    x = torch.tensor([10.0**exponent], dtype=torch.float32)
    torch.testing.assert_close(reciprocal(x, RECIPROCAL), 1 / x, rtol=3e-3, atol=0)
    torch.testing.assert_close(rsqrt(x, RSQRT), x.rsqrt(), rtol=5e-3, atol=0)


@given(u=st.floats(0, 31.9))
def test_exp2_is_accurate_relatively(u: float) -> None:
    x = torch.tensor([u], dtype=torch.float32)
    torch.testing.assert_close(exp2_negative(x, EXP), (-x).exp2(), rtol=5e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_arguments_stay_finite(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    x = torch.tensor([0, -1, limits.tiny, limits.tiny / 8, 1e-30, 1, 1e30, limits.max, math.inf], dtype=dtype)
    for operator, group in ((exp2_negative, EXP), (reciprocal, RECIPROCAL), (rsqrt, RSQRT)):
        out = operator(x, group)
        assert out.isfinite().all()
        assert (out >= 0).all()
        assert out.dtype == torch.promote_types(dtype, torch.float32)
    assert (exp2_negative(x, EXP)[-3:] == 0).all()
    assert reciprocal(x, RECIPROCAL)[0] == reciprocal(x, RECIPROCAL)[1] > 1e37
    for kind in ACTIVATIONS:
        assert activation(x[:-1], activation_group(kind), kind).isfinite().all()  # type: ignore[arg-type]


def test_what_underflows_leaves_its_neurons_silent() -> None:
    reduced = reduce_exp2(torch.tensor([LAST_OCTAVE - 1e-4, LAST_OCTAVE, 1e30, math.inf], dtype=torch.float64))
    assert (reduced.argument[1:] == 0).all()
    assert reduced.argument[0] < 2e-4
    assert reduced.scale.tolist() == [2.0**-31, 0, 0, 0]


def test_nan_is_not_hidden() -> None:
    nan = torch.tensor([math.nan])
    assert all(f(nan, g).isnan() for f, g in ((exp2_negative, EXP), (reciprocal, RECIPROCAL), (rsqrt, RSQRT)))


@pytest.mark.parametrize(
    ("operator", "group", "exact"),
    [
        (exp2_negative, EXP, lambda u: (-u).exp2()),
        (reciprocal, RECIPROCAL, lambda s: 1 / s),
        (rsqrt, RSQRT, torch.rsqrt),
    ],
)
def test_gradients_follow_the_functions(operator, group, exact) -> None:
    x = torch.logspace(-1, 1, 300, dtype=torch.float64, requires_grad=True)
    (slope,), (wanted,) = (torch.autograd.grad(y.sum(), x) for y in (operator(x, group), exact(x)))
    torch.testing.assert_close(slope, wanted, rtol=0.2, atol=0)


@pytest.mark.parametrize("kind", ["gelu", "silu", "tanh"])
def test_gradients_follow_the_activations(kind) -> None:
    x = torch.linspace(-8, 8, 300, dtype=torch.float64, requires_grad=True)
    (slope,), (wanted,) = (
        torch.autograd.grad(y.sum(), x) for y in (activation(x, activation_group(kind), kind), ACTIVATIONS[kind](x))
    )
    torch.testing.assert_close(slope, wanted, rtol=0, atol=0.15)


# Activations


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_within_a_hundredth(kind) -> None:
    x = torch.linspace(-20, 20, 100001, dtype=torch.float64)
    exact = ACTIVATIONS[kind](x)
    group = activation_group(kind)
    assert (activation(x, group, kind) - exact).abs().max() <= 0.01
    assert activation(torch.zeros(1), group, kind) == ACTIVATIONS[kind](torch.zeros(1))
    far = torch.tensor([1e4, -1e4])
    torch.testing.assert_close(activation(far, group, kind), ACTIVATIONS[kind](far), rtol=0, atol=0.01)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(FasError, match="'mish'; there are groups for gelu, "):
        activation_group("mish")  # type: ignore[arg-type]


# Compositions


def total_variation(p: Tensor, exact: Tensor) -> Tensor:
    return (p - exact).abs().sum(-1) / 2


@pytest.mark.parametrize("sigma", [1, 2, 4])
@pytest.mark.parametrize("keys", [64, 256, 1024, 4096])
def test_softmax_holds_at_language_model_lengths(keys: int, sigma: int) -> None:
    scores = sigma * normal(keys + sigma, 64, keys)
    p = softmax(scores, EXP, RECIPROCAL)
    variation = total_variation(p, scores.double().softmax(-1))
    assert variation.mean() <= 0.02, f"mean {variation.mean():.4f}, max {variation.max():.4f}"
    assert variation.max() <= 0.02
    assert (p.sum(-1) - 1).abs().max() <= 0.01


def test_softmax_masks() -> None:
    scores, keep = 3 * normal(0, 2, 4, 6, 6), torch.ones(6, 6).tril().bool()
    p = softmax(scores, EXP, RECIPROCAL, keep)
    assert (p.masked_select(~keep) == 0).all()
    torch.testing.assert_close(p, scores.masked_fill(~keep, -math.inf).softmax(-1), rtol=0, atol=5e-3)
    for low in (-math.inf, torch.finfo(torch.float32).min):
        added = torch.zeros(6, 6).masked_fill(~keep, low)
        assert torch.equal(softmax(scores, EXP, RECIPROCAL, added), p)


def test_softmax_of_a_row_that_attends_to_nothing_is_zero_and_a_single_key_one() -> None:
    scores = normal(1, 3, 5)
    assert (softmax(scores, EXP, RECIPROCAL, torch.zeros(3, 5, dtype=torch.bool)) == 0).all()
    torch.testing.assert_close(softmax(scores[:, :1], EXP, RECIPROCAL), torch.ones(3, 1), rtol=0, atol=5e-3)
    assert softmax(torch.tensor([[1e30, -1e30, 0]]), EXP, RECIPROCAL).isfinite().all()


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 0.1, 1, 10, 100, 1e3])
def test_norms_within_half_a_percent(scale: float) -> None:
    x = scale * (normal(2, 500, 64, dtype=torch.float64) * (1 + 3 * normal(3, 500, 1, dtype=torch.float64).abs()) + 0.3)
    weight, bias = 1 + 0.3 * normal(4, 64), normal(5, 64)
    for eps in (1e-5, 1e-6):
        variance, centred = x.square().mean(-1, keepdim=True), x - x.mean(-1, keepdim=True)
        rms = x * (variance + eps).rsqrt()
        for offset in (0, 1):
            out = rms_norm(x, weight, eps, RSQRT, offset)
            assert ((out / (rms * (offset + weight)) - 1).abs() <= 0.005).all()
        exact = functional.layer_norm(x, (64,), weight.double(), bias.double(), eps)
        error = layer_norm(x, weight, bias, eps, RSQRT) - exact
        scale_of_row = (exact - bias).norm(dim=-1)
        assert (error.norm(dim=-1) <= 0.005 * scale_of_row).all()
        assert torch.equal(layer_norm(x, None, None, eps, RSQRT), rms_norm(centred, None, eps, RSQRT))


# Spikes


def test_one_neuron_rounds_and_the_error_keeps_to_its_bound() -> None:
    x = torch.linspace(0, 1, 997)
    for levels in (8, 15):
        group = SpikingGroup(EXP, "exp", clock("qcfs", levels=levels))
        codes = group.site(charges(x, group.corners, group.site.scale)) / group.site.scale * levels
        partial = (codes - codes.round()).abs() > 1e-3
        assert not partial.any()
        assert (((codes > 0.5) & (codes < levels - 0.5)).sum(-1) <= 1).all()
        added = (group(x) - EXP(x)).abs().amax(0)
        assert (added <= EXP.rounding_bounds(levels)[0] + 1e-6).all()


@pytest.mark.parametrize("name", ALL_GROUPS)
def test_settled_spikes_equal_the_quantized_group(name: str) -> None:
    group = ALL_GROUPS[name]()
    low, high = group.corners[0].item(), (group.corners[-1] + group.widths[-1]).item()
    x = torch.linspace(low - 1, high + 1, 211) + 1e-4
    quantized = SpikingGroup(group, name, clock("qcfs"))(x)
    for changes in ({"timesteps": 8}, {"timesteps": 32}, {"timesteps": 15, "coding": "rate"}):
        neurons = SpikingGroup(group, name, clock(**changes))
        rows = neurons(over_time(x, changes["timesteps"])).view(changes["timesteps"], 211, -1)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows[-1], quantized, rtol=0, atol=1e-5)


def test_a_rate_group_keeps_no_excess_of_an_argument_beyond_its_range() -> None:
    """Running means: beyond the range, then inside. A neuron that had kept the excess would fire on to the end."""
    beyond, within = (torch.tensor([first] * 16 + [0.5] * 16) for first in (4.0, 1.0))
    neurons = SpikingGroup(EXP, "exp", clock(coding="rate", timesteps=32))
    assert torch.equal(neurons(beyond), neurons(within))
    assert neurons(beyond)[-1, 0] > neurons(beyond)[15, 0] + 0.05


@given(seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_a_softmax_by_spikes_stays_close_while_its_scores_cross_octaves(seed: int) -> None:
    timesteps = 16
    sigma_delta = clock(timesteps=timesteps)
    exp, inverse = SpikingGroup(EXP, "exp", sigma_delta), SpikingGroup(RECIPROCAL, "reciprocal", sigma_delta)
    final = 2 * normal(seed, 1, 4, 128)
    noise = normal(seed + 1, timesteps, 4, 128) * (2.0 ** -torch.arange(timesteps))[:, None, None]
    p = softmax(final + noise, exp, inverse)[-1]
    assert (total_variation(p, final[0].softmax(-1)) < 0.05).all()
    assert ((p.sum(-1) - 1).abs() < 0.03).all()


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ALL_GROUPS)
def test_a_group_with_its_own_levels_settles_on_its_own_grid(name: str, levels: int) -> None:
    group = ALL_GROUPS[name]()
    x = torch.linspace(0, 5, 211) + 1e-4
    quantized = SpikingGroup(group, name, clock("qcfs", levels=levels))(x)
    assert torch.equal(SpikingGroup(group, name, clock("qcfs"), levels=levels)(x), quantized)
    rows = SpikingGroup(group, name, clock(), levels=levels)(over_time(x, 8)).view(8, 211, -1)
    torch.testing.assert_close(rows[-1], quantized, rtol=0, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 4])
def test_a_resting_group_has_the_slope_of_its_segments_and_none_outside(levels: int) -> None:
    group = fit_group([torch.exp, torch.sin], 0, 2, 8)
    x = torch.tensor([-0.5, 0.3, 1.1, 1.9, 2.5], requires_grad=True)
    SpikingGroup(group, "pair", clock("qcfs"), levels=levels)(x)[:, 0].sum().backward()
    exact = x.detach().double().requires_grad_()
    group(exact)[:, 0].sum().backward()
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    assert x.grad[0] == x.grad[-1] == 0


@given(seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_neurons_of_one_level_follow_at_once(seed: int) -> None:
    """Whatever the argument did before, the readout is that of the last row: nothing lags."""
    rows = torch.rand(8, 20, generator=torch.Generator().manual_seed(seed))
    group = fit_group([torch.exp], 0, 1, 16)
    out = SpikingGroup(group, "exp", clock(), levels=1)(rows.flatten())[-20:]
    torch.testing.assert_close(out, SpikingGroup(group, "exp", clock("qcfs"), levels=1)(rows[-1]), rtol=0, atol=1e-5)


def test_few_levels_follow_scores_that_are_still_being_encoded_with_fewer_spikes() -> None:
    """Scores settle only in the last steps; the operands' own schedule, which ends in small steps, leaves the groups behind."""
    counted: list[int] = []
    shared = Clock(SpikingConfig(levels=8, timesteps=8), stage="snn", depth=1)
    operand = Site("operand", 64, signed=True, consumers=1, clock=shared)
    operand.log_scale.data.fill_(math.log(3.5))
    with torch.no_grad():
        query, key = (operand(over_time(normal(seed, 1, 64, 64), 8)) for seed in (0, 1))
        scores = query @ key.mT / 4
        shared.probe = lambda _, spikes: counted.append(int(spikes.count_nonzero()))
        errors = [
            total_variation(
                softmax(scores, SpikingGroup(EXP, "e", shared, levels), SpikingGroup(RECIPROCAL, "r", shared, levels))[
                    -1
                ],
                scores[-1].softmax(-1),
            ).mean()
            for levels in (None, 8)
        ]
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 5
    assert sum(counted[2:]) < 0.7 * sum(counted[:2])


def test_levels_of_a_group_are_a_power_of_two() -> None:
    with pytest.raises(FasError, match=r"group layer\.0\.exp cannot have 3 levels"):
        SpikingGroup(EXP, "layer.0.exp", clock(), levels=3)


def test_a_group_keeps_fp32_and_its_scale_and_survives_copies() -> None:
    group = SpikingGroup(EXP, "exp", clock("qcfs"))
    assert not group.site.log_scale.requires_grad
    assert set(group.state_dict()) == {"site.log_scale", "corners", "readout", "readout_offset"}
    x = torch.linspace(0, 1, 50)
    expected = group(x)
    for copied in (copy.deepcopy(group), pickle.loads(pickle.dumps(group)), copy.deepcopy(group).to(torch.bfloat16)):
        assert all(tensor.dtype == torch.float32 for tensor in copied.state_dict().values())
        assert torch.equal(copied(x), expected)
    assert group(x.bfloat16()).dtype == torch.float32


def test_a_group_is_loaded_from_a_checkpoint_onto_an_empty_one() -> None:
    group = SpikingGroup(RSQRT, "rsqrt", clock("qcfs"))
    with torch.device("meta"):
        empty = SpikingGroup(RSQRT, "rsqrt", clock("qcfs"), device=torch.device("meta"))
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    empty.load_state_dict(group.state_dict(), assign=True)
    x = torch.linspace(1, 4, 50)
    assert torch.equal(empty(x), group(x))


def test_a_group_outside_a_folded_segment_raises_and_names_itself() -> None:
    group = SpikingGroup(EXP, "layer.0.exp", Clock(SpikingConfig(levels=7), stage="snn"))
    with pytest.raises(FasError, match=r"layer\.0\.exp"):
        group(torch.zeros(4))


def test_gradients_reach_the_argument_through_the_quantized_group() -> None:
    x = torch.linspace(0.05, 5, 64).requires_grad_()
    group = SpikingGroup(EXP, "exp", clock("qcfs"))
    (grad,) = torch.autograd.grad(exp2_negative(x, group).sum(), x)
    torch.testing.assert_close(grad, -math.log(2) * (-x.detach()).exp2(), rtol=0.2, atol=0)
