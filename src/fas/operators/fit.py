"""Fitting a group: where its segments lie, and the readouts that follow the functions; fp64, milliseconds, deterministic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fas.errors import FasError
from fas.operators.group import Group, charges

LARGEST = 16
"""Neurons of a group at most; beyond it two groups, or a narrower range, are the better buy."""
_SAMPLES = 4097
_SWEEPS = 4000

Function = Callable[[Tensor], Tensor]


def fit_group(
    functions: Sequence[Function],
    low: float,
    high: float,
    neurons: int,
    penalty: float = 1e-7,
    offset: float | None = None,
    evenness: float = 0.1,
) -> Group:
    """The group of ``neurons`` on [``low``, ``high``] with one readout for each of ``functions`` (fp64 ``[n]`` to ``[n]``).

    Minimizes, over a dense grid, ½·mean (b + Σ_i r_i·h_i/w_i − f)² + ``penalty``·‖r‖₁ with r_i = w2_i·w_i, the rise of
    segment i: spikes of L levels add at most ‖r‖₁/(2L) (STA's bound, in which all thresholds are one), so a larger
    penalty trades fit for robustness. ``offset`` fixes b, where f(low) has to be met exactly; ``evenness`` is that of
    `spaced_knots`. Raises `FasError` for an empty range or a number of neurons outside 1…16.
    """
    if not low < high:
        raise FasError(f"a group needs a range with low < high, not [{low}, {high}]")
    if not 1 <= neurons <= LARGEST:
        raise FasError(f"a group has 1 to {LARGEST} neurons, not {neurons}")
    with torch.device("cpu"):  # also where the caller builds a model without memory, on the meta device
        grid = torch.linspace(low, high, _SAMPLES, dtype=torch.float64)
        targets = torch.stack([f(grid) for f in functions])
        knots = spaced_knots(grid, targets, neurons, evenness)
        corners, widths = knots[:-1], knots[1:] - knots[:-1]
        basis = charges(grid, corners, widths) / widths
        solved = [_solve(basis, target, penalty, offset) for target in targets]
    rises, offsets = torch.stack([r for r, _ in solved]), torch.stack([b for _, b in solved])
    return Group(corners, widths, rises / widths, offsets)


def spaced_knots(grid: Tensor, targets: Tensor, neurons: int, evenness: float = 0.1) -> Tensor:
    """Ends of the segments ``[N + 1]``: dense where a function bends, as √|f″| (equal error of every segment).

    ``targets`` ``[R, n]`` are the functions on ``grid`` ``[n]``; all share the neurons, so the one that bends most decides.
    ``evenness`` is the share of the spacing that ignores the bend, so that straight stretches get segments too; a large one
    makes all segments equally wide, which has up to seven times the largest error (docs/operators.md).
    """
    bend = (targets[:, 2:] - 2 * targets[:, 1:-1] + targets[:, :-2]).abs().sqrt()
    # what a straight function seems to bend is rounding
    density = (bend / bend.mean(-1, keepdim=True).clamp(min=1e-6)).amax(0) + evenness
    share = torch.cat([density.new_zeros(1), density.cumsum(0)])
    share = share / share[-1]
    places = torch.linspace(grid[0].item(), grid[-1].item(), len(share), dtype=grid.dtype)
    wanted = torch.arange(1, neurons, dtype=grid.dtype) / neurons
    right = torch.searchsorted(share, wanted)
    left = right - 1
    inside = (wanted - share[left]) / (share[right] - share[left])
    inner = places[left] + inside * (places[right] - places[left])
    return torch.cat([grid[:1], inner, grid[-1:]])


def _solve(basis: Tensor, target: Tensor, penalty: float, offset: float | None) -> tuple[Tensor, Tensor]:
    """(rises ``[N]``, offset) that fit ``target`` ``[n]`` on ``basis`` ``[n, N]``; b, where free, is solved with the rises."""
    mean = basis.mean(0) if offset is None else torch.zeros_like(basis[0])
    level = target.mean() if offset is None else target.new_tensor(offset)
    centred = basis - mean
    gram = centred.mT @ centred / len(basis)
    pull = centred.mT @ (target - level) / len(basis)
    rises = _lasso(gram, pull, penalty, torch.linalg.solve(gram, pull))
    return rises, level - mean @ rises


def _lasso(gram: Tensor, pull: Tensor, penalty: float, start: Tensor) -> Tensor:
    """argmin ½ rᵀGr − pᵀr + penalty·‖r‖₁ by coordinate descent from ``start`` (the solution without penalty)."""
    rows, wanted, r = gram.tolist(), pull.tolist(), start.tolist()
    for _ in range(_SWEEPS):
        moved = 0.0
        for i, row in enumerate(rows):
            free = wanted[i] - sum(a * b for a, b in zip(row, r, strict=True)) + row[i] * r[i]
            best = max(abs(free) - penalty, 0.0) * (1 if free > 0 else -1) / row[i]
            moved, r[i] = max(moved, abs(best - r[i])), best
        if moved < 1e-10:
            break
    return torch.tensor(r, dtype=gram.dtype)
