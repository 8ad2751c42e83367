"""Coarse calibration: per site one step schedule, one factor on the threshold, one initial potential; then per channel.

Candidates are judged on the inputs that the already calibrated SNN really produces, against the encoding that the QCFS
model has there, weighted by how strongly each channel is read: Σ_c ‖W_c‖²·E(a_c − b_c)². What a site gives before the last
timestep counts too, with less weight: layers behind it can only settle once it has.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, combinations_with_replacement, pairwise, product

import torch
from torch import Tensor

from fas.errors import DataError
from fas.neurons import Site, codes, rate_mean_rows, rate_step_rows, sigma_delta
from fas.neurons.sigma_delta import dead_zones
from fas.steps import default_steps

# A rate code of few timesteps is coarser than the QCFS grid, so its best threshold may be far below λ.
FACTORS = {
    "rate": (0.35, 0.5, 0.65, 0.8, 0.9, 1.0, 1.12, 1.3),
    "sigma_delta": (0.8, 0.9, 1.0, 1.1, 1.25),
}
POTENTIALS = (0.5, 0.35, 0.65)
DEAD_ZONES = (0.0, 0.125, 0.25, 0.375, 0.5)
EARLY_WEIGHT = 1.2
"""Of the squared error after timestep t < T, times t/T³: with two timesteps the layers behind have no time to take anything
back (docs/log.md, 2026-11-26)."""
PATIENCE = 0.1
"""Where spikes have a price, waiting for the layers in front to settle must be worth its while."""
VALUES = 1 << 14
CHUNK = 1 << 17
"""Values of all timesteps that are looked at together."""
MOST_SCHEDULES = 80
SWEEPS = 3
MOST_CLIMBED = 24
"""Timesteps up to which single steps of a schedule are tried; with so much time they matter little."""


@dataclass(frozen=True)
class Choice:
    """Neuron parameters of one site: θ, v₀ and a₀ ``[C]``, its step schedule ``[T]`` (sigma_delta)."""

    threshold: Tensor
    v_init: Tensor
    a_init: Tensor
    steps: tuple[int, ...]
    dead_zone: tuple[float, ...] = ()
    constant: Tensor | None = None
    """What the bias of the layers behind adds, in the unit of the rows ``[C]``; None: nothing."""


@dataclass(frozen=True)
class Setting:
    """The same for all channels: θ = ``factor``·λ, v₀, and a start at zero or at each channel's ``typical`` code."""

    steps: tuple[int, ...]
    typical: bool = False
    factor: float = 1.0
    potential: float = 0.5
    zone: float = 0.0
    """Dead zone of all timesteps but the last."""
    last_zone: float = 0.0


class Search:
    """Candidates for one site, on input ``rows`` ``[T, N, C]`` and the QCFS encoding ``target`` ``[N, C]``.

    ``importance`` ``[C]`` is the weight of each channel's squared error; ``price``, how much relative error one spike a neuron
    is worth (0: spikes are free); without ``search_steps`` the configuration's schedule stays, without dead zones.
    """

    def __init__(
        self,
        site: Site,
        rows: Tensor,
        target: Tensor,
        importance: Tensor,
        price: float = 0.0,
        search_steps: bool = True,
    ) -> None:
        self.site, self.rows, self.target, self.importance, self.price = site, rows, target, importance, price
        self.search_steps = search_steps
        self.config = site.clock.config
        self.scale = site.scale.detach()
        typical = (codes(part.target, self.scale, site.levels, site.signed).sum(0) for part in self.chunks())
        self.start = (sum(typical, torch.zeros_like(self.scale)) / len(target)).round()

    def coarse(self) -> Choice:
        """One schedule, one start, one factor and one potential for the whole site, judged on `VALUES` random values."""
        some = self._sampled(VALUES)
        # every other zone, the same in all timesteps but the last; refined below, with one for the last
        starts = [
            Setting(steps, typical, zone=zone)
            for steps in self._schedules()
            for typical in self._starts()
            for zone in self._zones()[::2]
        ]
        base = min(starts, key=some.total)
        self._require_finite(some.total(base), len(starts))
        base = some._climb(base) if self.search_steps else base
        zones = [replace(base, zone=zone, last_zone=last) for zone in self._zones() for last in self._zones()[:3]]
        base = min(zones, key=some.total)
        return self.choice(min(_around(base, self.config.coding), key=some.total))

    def _require_finite(self, least: float, count: int) -> None:
        """Raise `DataError` where not even the best of ``count`` candidates has a finite error."""
        if not math.isfinite(least):
            raise DataError(
                f"none of {count} candidates for the neurons of {self.site.name} has a finite error on the calibration data "
                f"(inputs up to {float(self.rows.abs().max()):.3g}); start from a sound model, or a wider dtype"
            )

    def _zones(self) -> tuple[float, ...]:
        return DEAD_ZONES if self.config.coding == "sigma_delta" and self.search_steps else (0.0,)

    def choice(self, setting: Setting) -> Choice:
        """``setting`` for every channel."""
        start = self.start if setting.typical else torch.zeros_like(self.scale)
        v_init = torch.full_like(self.scale, setting.potential)
        zones = dead_zones(len(setting.steps), setting.zone, setting.last_zone) if setting.steps else ()
        return Choice(self.scale * setting.factor, v_init, start, setting.steps, zones)

    def total(self, setting: Setting) -> float:
        """Weighted squared error of all channels."""
        return float(self.errors(self.choice(setting)).sum())

    def _sampled(self, most: int) -> Search:
        """The search on at most ``most`` values, each a channel of its own: a whole site needs no more to be judged."""
        count, channels = self.target.shape
        if count * channels <= most:
            return self
        picked = torch.randint(count * channels, (most,), generator=torch.Generator().manual_seed(0))
        row, channel = (picked // channels).to(self.rows.device), (picked % channels).to(self.rows.device)
        some = copy.copy(self)
        some.rows, some.target = self.rows[:, None, row, channel], self.target[None, row, channel]
        some.scale, some.start, some.importance = self.scale[channel], self.start[channel], self.importance[channel]
        return some

    def _climb(self, base: Setting) -> Setting:
        """Change the schedule of ``base`` one timestep (or two neighbours) at a time while that helps."""
        least = self.total(base)
        for _ in range(SWEEPS):
            found = [replace(base, steps=steps) for steps in neighbours(base.steps, self.site.levels)]
            best = min(found, key=self.total, default=base)
            if not self.total(best) < least:
                break
            base, least = best, self.total(best)
        return base

    def per_channel(self, base: Choice) -> Choice:
        """Each channel's own best factor and potential, with the schedule and start of ``base``."""
        settings = _around(Setting(base.steps), self.config.coding)
        candidates = [
            base,
            *(replace(base, threshold=c.threshold, v_init=c.v_init) for c in map(self.choice, settings)),
        ]
        winners = torch.stack([self.errors(choice) for choice in candidates]).argmin(0)[None]

        def pick(values: list[Tensor]) -> Tensor:
            return torch.stack(values).gather(0, winners)[0]

        threshold = pick([choice.threshold for choice in candidates])
        return replace(base, threshold=threshold, v_init=pick([choice.v_init for choice in candidates]))

    def errors(self, choice: Choice) -> Tensor:
        """Weighted squared error of each channel ``[C]``, over timesteps; infinity where it is no number."""
        by_time, spikes = 0.0, 0.0
        for part in self.chunks():
            rows, fired = part._fire(choice)
            by_time = by_time + (rows - part.target).square_().sum(1)  # [T, C]
            spikes = spikes + fired.count_nonzero((0, 1)) if self.price else spikes
        errors = (by_time * self.weights()[:, None]).sum(0) * self.importance / len(self.target)
        if self.price:
            power = (self.target.square().mean(0) * self.importance).mean()
            errors = errors + self.price * power * spikes / len(self.target)
        return errors.nan_to_num(nan=math.inf, posinf=math.inf)

    def weights(self) -> Tensor:
        """How much the error after each timestep matters ``[T]`` (step rows, whose mean counts: ``[1]``)."""
        count = 1 if self.config.coding == "rate" and self.config.rows == "step" else len(self.rows)
        weight = torch.arange(1, count + 1, device=self.rows.device) / count
        weight[:-1] *= (PATIENCE if self.price else 1) * EARLY_WEIGHT / count**2
        return weight

    def visible(self) -> Search:
        """The search on rows that are not hidden (all 0), of an operand of attention."""
        seen = self.rows[-1].any(-1).nonzero().flatten()
        return self.only(seen[: -(-len(self.target) // 2)]) if len(seen) else self

    def only(self, picked: Tensor | slice) -> Search:
        """The search on some of its rows."""
        some = copy.copy(self)
        some.rows, some.target = self.rows[:, picked], self.target[picked]
        return some

    def outputs(self, choice: Choice) -> Tensor:
        """What the site gives ``[T, N, C]`` (step rows: their mean ``[1, N, C]``), with a gradient where ``choice`` has one."""
        return self._fire(choice)[0]

    @property
    def tokens(self) -> int:
        """How many rows are looked at together."""
        most = CHUNK if self.rows.device.type == "cpu" else CHUNK << 8  # a GPU waits for every call
        return max(1, most // self.rows[:, 0].numel())

    def chunks(self) -> Iterator[Search]:
        """The search on so many of its rows at a time that what is made of them stays small."""
        for first in range(0, len(self.target), self.tokens):
            yield self.only(slice(first, first + self.tokens))

    def spikes(self, choice: Choice) -> float:
        """Spikes per neuron of ``choice``."""
        fired = sum(int(part._fire(choice)[1].count_nonzero()) for part in self.chunks())
        return fired / self.target.numel()

    def _fire(self, choice: Choice) -> tuple[Tensor, Tensor]:
        rows, spikes = self._neurons(choice)
        return rows if choice.constant is None else rows + choice.constant, spikes

    def _neurons(self, choice: Choice) -> tuple[Tensor, Tensor]:
        site, config = self.site, self.config
        if config.coding == "sigma_delta":
            return sigma_delta(
                self.rows,
                choice.threshold,
                choice.v_init,
                choice.a_init,
                choice.steps,
                site.levels,
                site.signed,
                choice.dead_zone,
            )
        if config.rows == "step":
            rows, spikes = rate_step_rows(self.rows, choice.threshold, choice.v_init, site.signed)
            return rows.mean(0, keepdim=True), spikes
        return rate_mean_rows(self.rows, choice.threshold, choice.v_init, site.signed)

    def _starts(self) -> list[bool]:
        """Tracking may start at zero, or at each channel's typical code (for linear layers a constant bias, no spike)."""
        if self.config.coding == "rate" or self.site.kind != "input" or not bool(self.start.any()):
            return [False]
        return [False, True]

    def _schedules(self) -> list[tuple[int, ...]]:
        if self.config.coding == "rate":
            return [()]
        given = tuple(self.site.starting_steps(self.config.step_schedule, self.config.neurons_per_channel))
        if not self.search_steps:
            return [given]
        found = [given, *falling_schedules(given, self.site.levels)]
        if self.price:
            found += waiting_schedules(len(given), self.site.levels)
        return list(dict.fromkeys(found))


def waiting_schedules(timesteps: int, levels: int) -> list[tuple[int, ...]]:
    """Schedules that are silent in their first timesteps: a spike worth 2L never fires, for it would leave the grid.

    >>> waiting_schedules(4, 3)
    [(8, 2, 1, 1), (8, 8, 2, 1), (8, 8, 8, 2)]
    """
    silent = 1 << (2 * levels - 1).bit_length()
    return [(silent,) * wait + default_steps(levels, timesteps - wait) for wait in range(1, timesteps)]


def _around(base: Setting, coding: str) -> list[Setting]:
    """``base`` with every factor and potential."""
    pairs = product(FACTORS[coding], POTENTIALS)
    return [replace(base, factor=factor, potential=potential) for factor, potential in pairs]


def neighbours(steps: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Schedules that differ from ``steps`` in one step, twice or half as large, or in the order of two steps in a row.

    >>> neighbours((2, 1), 2)
    [(4, 1), (1, 1), (2, 2), (1, 2)]
    """
    found: list[tuple[int, ...]] = []
    for t, k in enumerate(steps):
        for other in (2 * k, k // 2):
            if 1 <= other <= 2 * levels:
                found.append((*steps[:t], other, *steps[t + 1 :]))
    for t in range(len(steps) - 1):
        if steps[t] != steps[t + 1]:
            found.append((*steps[:t], steps[t + 1], steps[t], *steps[t + 2 :]))
    return [steps for steps in dict.fromkeys(found) if len(steps) <= MOST_CLIMBED]


def falling_schedules(steps: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Schedules of powers of two of the same length that never rise, from at most 2L down; at most `MOST_SCHEDULES`.

    Few timesteps: all of them, also incomplete ones such as 16,4,2,1, which miss some codes by one and reach further (good
    for heavy tails). More timesteps: those that fall by halves from the largest of ``steps``.

    >>> falling_schedules((2, 1), 2)
    [(4, 2), (4, 1), (2, 2), (2, 1), (1, 1)]
    """
    timesteps = len(steps)
    if timesteps > 24:  # their number explodes, and with so much time the schedule matters little
        return [tuple(steps)]
    if timesteps <= 4:
        sizes = [2**e for e in range(levels.bit_length(), -1, -1)]
        found = [s for s in combinations_with_replacement(sizes, timesteps) if s[0] <= 2 * levels and s[-1] <= 2]
    else:
        run = [max(steps) >> i for i in range(max(steps).bit_length())]
        found = []
        for cuts in combinations(range(1, timesteps), min(len(run), timesteps) - 1):
            counts = [b - a for a, b in pairwise((0, *cuts, timesteps))]
            found.append(tuple(k for k, count in zip(run, counts, strict=False) for _ in range(count)))
    return found[:: -(-len(found) // MOST_SCHEDULES)]
