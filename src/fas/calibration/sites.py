"""The sites of a block, one after the other: search and fit, keep what brings the block closer to its target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest

import torch
from torch import Tensor, nn

from fas.calibration.coarse import Choice, Search
from fas.calibration.corrections import absorbed, corrected
from fas.calibration.fit import consumers, fit, reader_of
from fas.calibration.options import CalibrationOptions
from fas.losses import comparable
from fas.models.linear import effective_weight
from fas.neurons import Clock, NeuronParameters, Site

# A schedule that settles earlier helps later layers, so it may cost this much relative error of its own layer's readout.
TOLERANCE = 2e-4
OPERAND_VALUES = 64
_FACTORS = {"query": "key", "key": "query"}


class Trial:
    """One block as its sites' neurons are now: ``judged`` gives the relative error of its readout."""

    def __init__(self, block: nn.Module, clock: Clock, judged: Callable[[], float], batches: int, share: int) -> None:
        self.block, self.clock, self.judged, self.batches, self.share = block, clock, judged, batches, share

    @torch.no_grad()
    def __call__(self, site: Site | None) -> tuple[float, Tensor | None]:
        """The error, and rows ``[T, N, C]`` of what ``site`` is given."""
        with observing([site] if site else [], self.clock, self.batches, self.share, outputs=False) as seen:
            error = self.judged()
        return error, seen()[site.name] if site else None


@torch.no_grad()
def calibrate_sites(
    sites: Sequence[Site], trial: Trial, encodings: Mapping[str, Tensor], options: CalibrationOptions
) -> tuple[float, float]:
    """Set the neuron parameters of ``sites`` of one block, in the order in which they run, to the best candidates.

    ``encodings`` ``[N, C]`` by name are what the QCFS model has there. A site changes only if the block's readout comes closer
    to its target, or no further away than `TOLERANCE` and what the spikes that it saves are worth (each, per neuron). Returns
    the error of the readout before and after.
    """
    searched = sites if options.coarse or options.corrections or options.fit_steps or options.absorb_bias else []
    before, rows = trial(next(iter(searched), None))
    least, price = comparable(before), options.spike_price
    for site, following in zip_longest(searched, searched[1:]):
        parameters = site.parameters_for(site.clock.config)
        assert parameters is not None
        assert rows is not None
        importance = _importance(trial.block, site, encodings)
        search = Search(site, rows, encodings[site.name], importance, price, options.search_steps)
        present = _present(parameters)
        for choice in _candidates(search, present, trial.block, options):
            _put(parameters, choice)
            now, rows = trial(following)
            saved = search.spikes(present) - search.spikes(choice) if price else 0.0
            if math.isfinite(now) and now <= least + TOLERANCE + price * max(0.0, saved):
                least = min(now, least)
                break
    return before, least


def _candidates(search: Search, present: Choice, block: nn.Module, options: CalibrationOptions) -> list[Choice]:
    """What a site may become, the most refined first, what it is now last; each is made from the one behind it."""
    visible = search.visible() if search.site.kind in ("operand", "cross") else search
    found = [present]
    if options.coarse:
        found.append(visible.coarse())
    if options.per_channel:
        found.append(visible.per_channel(found[-1]))
    if options.corrections:
        found.append(corrected(visible, found[-1]))
    if options.fit_steps:
        found.append(fit(visible, found[-1], reader_of(block, search.site, search.importance), options.fit_steps))
    if options.absorb_bias and search.site.kind == "input":
        found.append(absorbed(visible, found[-1]))
    return found[::-1]


def _present(parameters: NeuronParameters) -> Choice:
    steps = tuple(int(k) for k in parameters.steps)
    zones = tuple(parameters.dead_zone.tolist())
    return Choice(
        parameters.threshold.detach(),
        parameters.v_init.detach().clone(),
        parameters.a_init.clone(),
        steps,
        zones,
        parameters.constant.clone(),
    )


def _put(parameters: NeuronParameters, choice: Choice) -> None:
    parameters.log_threshold.data.copy_(choice.threshold.log())
    parameters.v_init.data.copy_(choice.v_init)
    parameters.a_init.copy_(choice.a_init)
    parameters.constant.copy_(torch.zeros_like(choice.a_init) if choice.constant is None else choice.constant)
    parameters.steps.copy_(torch.tensor(choice.steps, dtype=torch.float32))
    parameters.dead_zone.copy_(torch.tensor(choice.dead_zone or [0.0] * len(choice.steps)))


def _importance(block: nn.Module, site: Site, encodings: Mapping[str, Tensor]) -> Tensor:
    """How strongly each channel ``[C]`` is read: Σ over consumers of ‖W_c‖²; of a query E[k_c²], of a key E[q_c²]."""
    if site.kind in ("operand", "cross"):
        return _importance_in_scores(site, encodings)
    weights = [effective_weight(module, site.width).square().sum(1) for module in consumers(block, site)]
    return sum(weights, torch.zeros_like(site.scale.detach()))


def _importance_in_scores(site: Site, encodings: Mapping[str, Tensor]) -> Tensor:
    """Of an operand of attention: the mean square of what its channel is multiplied by (1 for values, probabilities)."""
    stem, role = next(((site.name.removesuffix(role), role) for role in _FACTORS if site.name.endswith(role)), ("", ""))
    other, heads = encodings.get(stem + _FACTORS.get(role, "")), encodings.get(stem + "probabilities")
    if other is None or heads is None:
        return torch.ones_like(site.scale.detach())
    power, features = other.square().mean(0), max(site.width, other.shape[1]) // heads.shape[1]
    if other.shape[1] > site.width:  # a key is read by all queries of its group
        return power.view(-1, other.shape[1] // site.width, features).sum(1).flatten()
    return power.view(-1, features).repeat_interleave(site.width // other.shape[1], 0).flatten()


@contextmanager
def observing(
    sites: Sequence[Site], clock: Clock, batches: int, share: int, outputs: bool
) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """Inside, ``share`` tokens of each of ``batches`` are kept of what each site gives (``outputs``) or is given; the call
    hands them over: by name, encodings ``[N, C]`` or inputs ``[T, N, C]``, the same tokens of both."""
    seen: dict[str, _Kept] = {site.name: _Kept(batches) for site in sites}

    def keep(site: Site, args: tuple[Tensor, ...], output: Tensor) -> None:
        value = (output if outputs else args[0]).detach()
        rows = clock.config.timesteps if clock.folds else 1
        value = value.reshape(rows, -1, site.width)
        seen[site.name].add(value[:, _tokens(site, value.shape[1], share).to(value.device)].float())

    def handed_over() -> dict[str, Tensor]:
        joined = {name: kept.rows[:, : kept.count] for name, kept in seen.items() if kept.rows is not None}
        return {name: value[0] if outputs else value for name, value in joined.items()}

    handles = [site.register_forward_hook(keep) for site in sites]
    try:
        yield handed_over
    finally:
        for handle in handles:
            handle.remove()


class _Kept:
    """Rows ``[T, N, C]`` of ``batches`` batches, written into one tensor that is there from the first."""

    def __init__(self, batches: int) -> None:
        self.batches, self.count = batches, 0
        self.rows: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        if self.rows is None:
            self.rows = rows.new_empty(len(rows), self.batches * rows.shape[1], rows.shape[2])
        end = self.count + rows.shape[1]
        if end > self.rows.shape[1]:  # batches that hold more than the first
            self.rows = torch.cat([self.rows[:, : self.count], rows], 1)
        else:
            self.rows[:, self.count : end] = rows
        self.count = end


def _tokens(site: Site, count: int, share: int) -> Tensor:
    """Which of ``count`` rows are kept: evenly spaced; of the probabilities of attention, which have few channels and many
    rows of which many are hidden, more, and at random."""
    if site.kind not in ("operand", "cross"):
        return torch.linspace(0, count - 1, min(count, share)).long()
    most = 2 * share * max(1, OPERAND_VALUES // site.width)
    return torch.randint(count, (most,), generator=torch.Generator().manual_seed(0))
