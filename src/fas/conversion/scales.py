"""Initial scales: per channel, the λ of least squared error on samples of what the site will carry (MMSE)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fas.config import SpikingConfig
from fas.errors import DataError, UnsupportedModelError
from fas.models import Placement
from fas.neurons import Clock, qcfs
from fas.neurons.rotation import Rotation, rotate
from fas.operators.population import LEVELS, NEURONS
from fas.progress import Progress, Silent, counted
from fas.runtime import attention
from fas.runtime.operators import centered, octave
from fas.runtime.reclassed import attention_as

SAMPLES_PER_SITE = 4096
CANDIDATES = 20
LOWEST = 1e-3
"""Of the largest value: the smallest scale that is tried."""
ROUGH = 1024
"""Rows that decide which candidate is refined."""
EVEN = 16.0
"""Times the median power of a row, up to which all rows count alike."""
ROOM = 2**30
"""Bytes of samples that are held at once."""
CHUNK = 256
"""Rows that are looked at together."""
LARGEST = {"linear": 1.0, "norm": 1.0, "operand": 0.9871}
"""Largest fraction tried. A token that sees only itself hands its value's grid point on to the next site: were the steps of
both grids commensurate, it would lie on a tie there, which rounding decides."""


@dataclass
class Samples:
    """Rows a site will be given, and what it stands in for (the activation's output where it replaces one)."""

    inputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)

    def add_operand(self, x: Tensor, keep: int) -> None:
        """Random rows of an attention operand ``[…, C]`` (evenly spaced ones would meet the same feature again and again);
        rows of zeros are hidden ones."""
        rows = x.detach().flatten(0, -2)
        picked = rows[torch.randint(len(rows), (2 * keep,), generator=torch.Generator().manual_seed(0)).to(x.device)]
        picked = picked[picked.any(-1)][:keep].float().cpu()
        self.inputs.append(picked)
        self.targets.append(picked)

    def centred(self, mean: Tensor) -> Samples:
        """The same as distances from ``mean`` ``[C]``."""
        inputs = [value - mean for value in self.inputs]
        pairs = zip(inputs, self.inputs, self.targets, strict=True)
        return Samples(inputs, [moved if target is x else target - mean for moved, x, target in pairs])

    def mean(self) -> Tensor:
        """Mean of each channel of the inputs ``[C]``, by `row_weights`."""
        rows = torch.cat(self.inputs)
        weights = row_weights(rows)
        return weights @ rows / weights.sum()

    def pooled(self) -> Samples:
        """All channels as one: ``[N·C, 1]``."""
        return Samples(*([torch.cat(values).reshape(-1, 1)] for values in (self.inputs, self.targets)))

    def add(self, x: Tensor, target: Tensor, keep: int, mask: Tensor | None) -> None:
        """Evenly spaced rows of ``x`` and ``target`` ``[…, C]``, which are held once if they are the same tensor."""
        picked = _evenly(x, keep, mask)
        self.inputs.append(picked)
        self.targets.append(picked if target is x else _evenly(target, keep, mask))


def _evenly(x: Tensor, keep: int, mask: Tensor | None) -> Tensor:
    """At most ``keep`` evenly spaced rows of ``x`` ``[…, C]``, of those that ``mask`` (if it is theirs) does not hide."""
    x = x.detach().flatten(0, -2)
    if mask is not None and mask.numel() == len(x):  # padding says nothing about real activations
        x = x[mask.flatten().bool()]
    rows = torch.linspace(0, len(x) - 1, min(keep, len(x)), device=x.device).long()
    return x[rows].float().cpu()


class _Sampler:
    """Forward hook that takes evenly spaced rows of what a site will be given, and of what it stands for; without ``samples``
    it only counts how often that is."""

    def __init__(self, samples: Samples | None, keep: int, place: Placement, rotation: Rotation) -> None:
        self.samples, self.keep, self.spec, self.rotation = samples, keep, place.spec, rotation
        self.mask: Tensor | None = None
        self.name, self.ran = place.name, 0

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.ran += 1
        if self.samples is None:
            return
        if self.spec.kind == "output":
            x = output.chunk(2, dim=-1)[1] if self.spec.half else output
        else:
            x = rotate(args[0], self.rotation)
            if self.spec.kind == "norm":
                x = centered(module, x)
                x = x / octave(x)
        # the mask is that of the text: a tower of another length has none
        is_text = self.mask is not None and (x.ndim == 2 or x.shape[-2] == self.mask.shape[-1])
        self.samples.add(x, output if self.spec.replaces else x, self.keep, self.mask if is_text else None)


class _Tap(nn.Module):
    """Stands where an attention operand's site will be and lets it pass, sampled (without ``samples`` only counted)."""

    def __init__(self, samples: Samples | None, keep: int, name: str) -> None:
        super().__init__()
        self.samples, self.keep = samples, keep
        self.name, self.ran = name, 0
        self.clock = Clock(SpikingConfig())

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        self.ran += 1
        if self.samples is not None:
            self.samples.add_operand(x, self.keep)
        return x


@contextmanager
def _tapped(
    model: PreTrainedModel, operands: Sequence[Placement], found: dict[str, Samples], keep: int
) -> Iterator[list[_Tap]]:
    """Attention by FAS's function, with taps for ``operands``; the model is left as it was."""
    taps = [_Tap(found.get(place.name), keep, place.name) for place in operands]
    with attention_as(model, attention.NAME) if operands else nullcontext():
        try:
            for place, tap in zip(operands, taps, strict=True):
                held = place.home._modules.setdefault("sites", nn.ModuleDict())
                held[place.spec.role] = tap  # type: ignore[index]
            yield taps
        finally:
            for place in operands:
                place.home._modules.pop("sites", None)


def sampled(
    model: PreTrainedModel,
    placements: Sequence[Placement],
    config: SpikingConfig,
    batches: Iterable[Mapping[str, Any]],
    progress: Progress | None = None,
    room: int | None = None,
) -> Iterator[tuple[Placement, Samples]]:
    """Each site that has a scale to fit, with samples of what it will see in the untouched ANN.

    All ``batches`` run once for as many sites as ``room`` holds, then once more for the next ones; the samples of a site are
    let go with the next site.

    Args:
        model: The ANN; it must stay as it is until the last site.
        placements: The sites that it will get.
        config: Says how values are rotated.
        batches: Calibration data, keyword arguments of the model.
        progress: Who is told how many batches have run, and how many sites were asked for.
        room: Bytes of samples that are held at once; `ROOM` by default.

    Raises:
        DataError: Without batches, or if they do not reach all sites.
        UnsupportedModelError: For a site that runs twice in a forward pass, or that cannot be sampled.
    """
    listed, progress = list(batches), progress or Silent()
    if not listed:
        raise DataError("no calibration batches: the initial scales are fitted to data; give at least one batch")
    places = [place for place in placements if place.spec.kind != "group"]
    keep = max(1, SAMPLES_PER_SITE // len(listed))
    groups = in_parts(places, keep * len(listed), room)
    for number, group in enumerate(groups, 1):
        part = f" (part {number} of {len(groups)})" if len(groups) > 1 else ""
        with sampling(model, places, config, len(listed), group) as kept:
            for batch in counted(listed, progress, f"Sampling the inputs of {len(group)} sites{part}"):
                kept.begin(batch)
                model(**{key: value for key, value in batch.items() if key != "labels"})
        require_samples(model, places, kept, len(listed))
        for place in counted(group, progress, f"Fitting the scales of {len(group)} sites{part}"):
            yield place, kept.found.pop(place.name)


def in_parts(placements: Sequence[Placement], rows: int, room: int | None = None) -> list[list[Placement]]:
    """``placements`` that have a scale to fit, in their order, as many together as have samples of ``room`` bytes (`ROOM` by
    default) with so many ``rows`` each, or a single one."""
    room = ROOM if room is None else room
    parts: list[list[Placement]] = []
    held = room
    for place in placements:
        if place.spec.kind == "group":
            continue
        size = sample_bytes(place, rows)
        held += size
        if held > room:
            parts.append([])
            held = size
        parts[-1].append(place)
    return parts


def sample_bytes(place: Placement, rows: int) -> int:
    """Bytes of the samples of one site: its inputs, and what it stands in for where that is something else."""
    channels = place.width // (2 * NEURONS) if place.spec.kind == "norm" else place.width
    return rows * channels * torch.float32.itemsize * (2 if place.spec.replaces else 1)


class Sampling:
    """Samples of sites, by name, while an ANN runs."""

    def __init__(self, wanted: Sequence[Placement]) -> None:
        self.found = {place.name: Samples() for place in wanted}
        self.samplers: list[_Sampler] = []
        self.taps: list[_Tap] = []

    def begin(self, batch: Mapping[str, Any]) -> None:
        """Say which batch runs next: rows of padding are not taken."""
        for hook in self.samplers:
            hook.mask = batch.get("attention_mask")

    @property
    def reached(self) -> set[str]:
        """Names of the sites that have met a value."""
        return {hook.name for hook in (*self.samplers, *self.taps) if hook.ran}


@contextmanager
def sampling(
    model: PreTrainedModel,
    placements: Sequence[Placement],
    config: SpikingConfig,
    batches: int,
    wanted: Sequence[Placement] | None = None,
) -> Iterator[Sampling]:
    """Inside, runs of an ANN sample what sites will see.

    Args:
        model: The ANN, or one of which blocks will run.
        placements: The sites that are watched.
        config: Says how values are rotated.
        batches: How many are to come.
        wanted: Those of the sites whose samples are held; all of them by default.
    """
    kept = Sampling(placements if wanted is None else wanted)
    training = model.training
    keep = max(1, SAMPLES_PER_SITE // batches)
    operands = [place for place in placements if place.spec.kind in ("operand", "cross")]
    with ExitStack() as stack, torch.no_grad():
        for place in placements:
            if place in operands or place.spec.kind == "group":
                continue
            replaces = place.spec.replaces
            source = place.owner.get_submodule(replaces) if replaces else place.consumers[0]
            hook = _Sampler(kept.found.get(place.name), keep, place, place.rotation(config))
            kept.samplers.append(hook)
            stack.callback(source.register_forward_hook(hook).remove)
        kept.taps = stack.enter_context(_tapped(model, operands, kept.found, keep))
        stack.callback(model.train, training)
        model.eval()
        yield kept


def require_samples(model: nn.Module, placements: Sequence[Placement], kept: Sampling, batches: int) -> None:
    """Raise for sites that none of the ``batches`` reached, by the fault of the model or of the batches, or that ran more than
    once in each."""
    places = [place for place in placements if place.spec.kind != "group"]
    idle = [place for place in places if place.name not in kept.reached]
    running = {id(place.owner) for place in places if place.name in kept.reached}
    unreached = [place.name for place in idle if place.spec.kind in ("operand", "cross") and id(place.owner) in running]
    if unreached:
        raise UnsupportedModelError(
            f"{unreached[0]}: {type(model).__name__} does not call transformers' attention interface there, so the operands of "
            "its attention cannot spike; choose coverage='linear'"
        )
    if idle:
        raise DataError(
            f"the calibration batches do not reach {len(idle)} of {len(places)} sites, first {idle[0].name}; give batches "
            "that use every part of the model (images beside text), or ignore those sites"
        )
    often = [hook.name for hook in kept.samplers if hook.ran > batches]
    if often:
        raise UnsupportedModelError(
            f"{often[0]} would run more than once in a forward, and its neurons would meet two signals; leave it analog with "
            f"ignore=('{often[0]}',)"
        )


def fitted_scale(place: Placement, samples: Samples, levels: int, shared: bool = False) -> Tensor:
    """λ ``[C]`` of the site of ``place``; the neurons of a population share what one grid of P·L levels would span."""
    if shared:  # every value counts as one of a single channel
        samples = samples.pooled()
    if place.spec.kind == "norm":
        return mmse_scale(samples, NEURONS * LEVELS, signed=True, kind="norm") / NEURONS
    kind = "operand" if place.spec.kind in ("operand", "cross") else "linear"
    return mmse_scale(samples, levels, place.spec.signed, kind)


def mmse_scale(samples: Samples, levels: int, signed: bool, kind: str = "linear") -> Tensor:
    """λ ``[C]`` of least ‖h(x) − target‖², of `CANDIDATES` on a logarithmic grid below each channel's largest target.

    The grid reaches `LOWEST` of the largest value, so that one outlier among thousands does not decide; the best candidate of
    `ROUGH` rows and its neighbours are refined twice on all. ``kind``: ``linear``, ``norm``, or ``operand`` of an attention
    product.
    """
    x, target = torch.cat(samples.inputs), torch.cat(samples.targets)
    largest = (target.abs() if signed else target.clamp(min=0)).amax(0)
    typical = largest.mean().clamp(min=1e-6)
    largest = (
        torch.where(largest > 0, largest, typical) * LARGEST[kind]
    )  # one that was always silent gets a typical scale
    ratio = LOWEST ** (1 / (CANDIDATES - 1))
    few = slice(None, None, max(1, len(x) // ROUGH))
    best = _least(x[few], target[few], [largest * ratio**place for place in range(CANDIDATES)], levels, signed)
    for finer in (4, 16 if kind == "norm" else 12):  # the best scale of many levels is sharper
        around = [torch.minimum(best * ratio ** (place / finer), largest) for place in range(-3, 4)]
        best = _least(x, target, around, levels, signed)
    return best.clamp(min=1e-6)


def row_weights(x: Tensor) -> Tensor:
    """How much each row of ``x`` ``[N, C]`` counts ``[N]``: 1, or less as its power is above the median row's by `EVEN` times.

    A massive token has thousands of times the power of all others; its squared error would decide alone.
    """
    power = x.square().mean(1)
    typical = EVEN * power.median().clamp(min=torch.finfo(x.dtype).tiny)
    return (typical / power.clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1.0)


def _least(x: Tensor, target: Tensor, scales: Sequence[Tensor], levels: int, signed: bool) -> Tensor:
    """Of ``scales`` the one of least squared error, channel by channel."""
    errors, weights = torch.zeros(len(scales), x.shape[1]), row_weights(target)
    # what lies in the cache
    for rows, wanted, weight in zip(x.split(CHUNK), target.split(CHUNK), weights.split(CHUNK), strict=True):
        for error, scale in zip(errors, scales, strict=True):
            error += weight @ (qcfs(rows, scale, levels, signed) - wanted).square_()
    errors = errors.nan_to_num(nan=torch.inf, posinf=torch.inf)  # argmin takes NaN for the least
    return torch.stack(list(scales)).gather(0, errors.argmin(0, keepdim=True))[0]


def weight_power(readers: Sequence[nn.Module]) -> Tensor:
    """How strongly each channel ``[C]`` is read: Σ ‖W_c‖² over linear layers ``readers``."""
    weights = [cast(Tensor, reader.weight).detach().float() for reader in readers]
    powers = [
        weight.square().sum(1 if isinstance(reader, Conv1D) else 0)
        for reader, weight in zip(readers, weights, strict=True)
    ]
    return torch.stack(powers).sum(0)


def mean_error(samples: Samples, scale: Tensor, levels: int, signed: bool) -> Tensor:
    """E[target − h(x)] ``[C]``: what a unit that stands in for GELU leaves out on average (its negative values)."""
    x, target = torch.cat(samples.inputs), torch.cat(samples.targets)
    return (target - qcfs(x, scale, levels, signed)).mean(0)
