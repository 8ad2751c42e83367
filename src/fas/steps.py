"""Step schedules of the sigma-delta coding: the power of two k_t that a spike of timestep t is worth."""

from __future__ import annotations

import math

# Measured on real models (docs/log.md): these beat the rule of `default_steps` at the same number of timesteps.
_MEASURED: dict[tuple[int, int], tuple[int, ...]] = {
    (8, 4): (4, 2, 2, 1),
    (8, 8): (4, 4, 2, 2, 1, 1, 1, 1),
    (12, 8): (8, 4, 4, 4, 2, 2, 1, 1),
    (15, 8): (8, 4, 4, 2, 4, 2, 1, 1),
}


def default_steps(levels: int, timesteps: int) -> tuple[int, ...]:
    """Schedule for a grid of ``levels`` in ``timesteps`` steps: from about L/2 down to 1, lower steps up to three times.

    A step that returns before it halves lets deep layers follow what shallow ones just corrected. With fewer timesteps than
    one run takes, the run is cut at its end: coarse values of large signals come first.

    >>> default_steps(8, 3), default_steps(15, 6), default_steps(7, 12)
    ((4, 2, 1), (8, 4, 2, 2, 1, 1), (4, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1))
    """
    if (levels, timesteps) in _MEASURED:
        return _MEASURED[levels, timesteps]
    exponent = max(0, round(math.log2(levels / 2)))
    run = [2**e for e in range(exponent, -1, -1)]
    if timesteps <= len(run):
        return tuple(run[:timesteps])
    counts = [1] * len(run)
    for index in range(timesteps - len(run)):  # smallest first, round and round
        place = len(run) - 1 - index % max(1, len(run) - 1)
        counts[place if counts[place] < 3 else -1] += 1
    return tuple(k for k, count in zip(run, counts, strict=True) for _ in range(count))


def is_complete(steps: tuple[int, ...], levels: int) -> bool:
    """Whether every constant input settles on its grid point: k_t ≤ 1 + 2·Σ_{u>t} k_u, k_T = 1 and L ≤ ½ + Σ k.

    Where a spike could be suppressed at the end of the grid (Σ_{u≤t} k_u > L), the later ones must make up for all of
    it: k_t ≤ 1 + Σ_{u>t} k_u.

    >>> is_complete((4, 2, 1), 7), is_complete((4, 2), 7), is_complete((8, 4, 2, 1), 16), is_complete((4, 1, 1), 3)
    (True, False, False, False)
    """
    heads, tails = [sum(steps[: i + 1]) for i in range(len(steps))], [sum(steps[i + 1 :]) for i in range(len(steps))]
    catches_up = all(
        k <= 1 + 2 * tail and (head <= levels or k <= 1 + tail)
        for k, head, tail in zip(steps, heads, tails, strict=True)
    )
    return catches_up and steps[-1] == 1 and levels <= 0.5 + sum(steps)


MOVES = 16
"""Moves of a value, timesteps × neurons a channel, within which 30 layers have settled at L = 31 (docs/real-models.md)."""


def neurons_for_moves(timesteps: int) -> int:
    """Fewest neurons a channel, powers of two, that make `MOVES` moves in ``timesteps``.

    >>> [neurons_for_moves(timesteps) for timesteps in (2, 3, 4, 8, 16, 32)]
    [8, 8, 4, 2, 1, 1]
    """
    neurons = 1
    while neurons * timesteps < MOVES:
        neurons *= 2
    return neurons
