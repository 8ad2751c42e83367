"""Where the error of few timesteps is: which neurons end elsewhere than their QCFS units, and what that costs, layer by layer.

The unevenness error (Bu et al. 2022; Hao et al. 2023): a neuron's count depends on when its input arrives, not only on how
much of it. What a layer's neurons cost is measured, not inferred: the same network runs with them replaced by neurons that
never lag (the QCFS unit of the running value at every timestep), and the logits say how much closer that is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.calibration.text import diagnosis_sections
from fas.errors import FasError
from fas.given import Batches, batches_for, model_from
from fas.losses import alignment, logits_loss, logits_of
from fas.models import find_segments
from fas.neurons import Clock, Site, qcfs
from fas.offloading import refuse_offloaded
from fas.progress import Progress, progress_from
from fas.runtime.control import as_qcfs, clock_of, sites_of, without_cache
from fas.runtime.folding import over_time, readout, said
from fas.runtime.replay import blocks_of
from fas.sections import Section, Shown

ELSEWHERE = "outside the layers"


@dataclass
class SiteDiagnosis:
    """The neurons of one site at the last timestep, as shares of them all."""

    name: str
    too_high: float = 0.0
    """More than half a grid step (λ/L) above the QCFS model's value: over-fired."""
    too_low: float = 0.0
    lagging: float = 0.0
    """More than half a grid step from the QCFS unit of their own final input: the error that arose here."""
    residual: float = 0.0
    """Mean distance of what they hold from their own final input (clipped to the grid), in grid steps; ¼ if only rounded."""

    @property
    def differing(self) -> float:
        """Share that ends elsewhere than in the QCFS model."""
        return self.too_high + self.too_low


@dataclass
class LayerDiagnosis:
    """One layer."""

    name: str
    cost: float
    """Nats of logits KL that would be saved if its neurons never lagged."""
    error: float | None = None
    """Squared error of its readout relative to the QCFS model's, inherited error included."""
    distances: list[float] = field(default_factory=list)
    """‖readout − QCFS model's‖ / ‖QCFS model's‖ if the network stopped after timestep 1, …, T; the last is √``error``."""
    sites: list[SiteDiagnosis] = field(default_factory=list)


@dataclass
class Diagnosis(Shown):
    """The temporal error of one coding and time on some text; ``print`` and a notebook show it as a table."""

    key: str
    kl: float
    """Nats per token: KL(QCFS model ‖ SNN)."""
    layers: list[LayerDiagnosis] = field(repr=False)

    def worst(self, count: int = 3) -> list[str]:
        """Names of the layers that cost most, dearest first."""
        dear = sorted((layer for layer in self.layers if layer.cost > 0), key=lambda layer: -layer.cost)
        return [layer.name for layer in dear[:count]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dict a site with its layer, such as pandas.DataFrame takes."""
        return [
            {"layer": layer.name, "cost": layer.cost, "error": layer.error, **asdict(site)}
            for layer in self.layers
            for site in layer.sites
        ]

    def sections(self) -> list[Section]:
        """As `fas eval --diagnose` and a notebook show it."""
        return diagnosis_sections(self.to_dict())


@torch.no_grad()
def diagnose(model: PreTrainedModel, batches: Batches, progress: Progress | bool | None = None) -> Diagnosis:
    """Compare ``model`` at its present coding and time with its QCFS model on ``batches`` (keyword arguments, as `calibrate`).

    Runs the SNN once, and once more for every layer. Groups of neurons at rest never lag and are not listed. Raises `DataError`
    without batches or for padded ones, `FasError` if the model simulates no time.
    """
    model_from(model, "fas.diagnose", nn.Module)
    clock, progress = clock_of(model), progress_from(progress)
    if not clock.folds:
        raise FasError("there is no temporal error to diagnose: convert the model and choose schedule='synchronous'")
    refuse_offloaded(model, "fas.diagnose")
    listed = batches_for(model, batches, "fas.diagnose", whole=True)
    with clock.changing("fas.diagnose"):
        return _diagnose(model, listed, clock, progress)


def _diagnose(
    model: PreTrainedModel, listed: Sequence[Mapping[str, Any]], clock: Clock, progress: Progress
) -> Diagnosis:
    training = model.training
    model.eval()
    try:
        layers = _layers(model)
        sums = _Sums(layers)
        progress.start("Diagnosis", len(layers) + 3)  # both networks, the distance, and it once more for each layer
        targets = [_compare(model, inputs, sums) for inputs in listed]
        progress.advance(2)
        kl = _distance(model, listed, targets)
        progress.advance(1, f"KL {kl:.4f} nats")
        found = []
        for name, _, sites in layers:
            with _never_lagging(sites):
                cost = kl - _distance(model, listed, targets)
            errors = [error / len(listed) for error in sums.errors.get(name, [])]
            distances = [math.sqrt(error) for error in errors]
            found.append(LayerDiagnosis(name, cost, errors[-1] if errors else None, distances, sums.of(sites)))
            progress.advance(1, f"{name} costs {cost:+.4f} nats")
        progress.done(f"KL to the QCFS model {kl:.4f} nats a token")
    finally:
        model.train(training)
    return Diagnosis(clock.config.neuron_key, kl, found)


_Layer = tuple[str, nn.Module | None, list[Site]]


def _layers(model: PreTrainedModel) -> list[_Layer]:
    """Every block with its sites, then the sites that are in none."""
    layers: list[_Layer] = []
    rest = dict(sites_of(model))
    for segment in find_segments(model):
        for index, block in enumerate(blocks_of(segment)):
            inside = [site for site in rest.values() if any(site is module for module in block.modules())]
            layers.append((f"{segment.name}.{index}", block, inside))
            for site in inside:
                del rest[site.name]
    return [*layers, (ELSEWHERE, None, list(rest.values()))] if rest else layers


class _Sums:
    """What was seen of each site and layer, over all batches."""

    def __init__(self, layers: Sequence[_Layer]) -> None:
        self.layers = layers
        self.neurons: dict[str, int] = {}
        self.sites: dict[str, Tensor] = {}
        self.errors: dict[str, list[float]] = {}
        """Squared errors of each layer's readout after each timestep."""

    def add(self, site: Site, x: Tensor, out: Tensor, target: Tensor, visible: Tensor | None) -> None:
        """Final inputs and outputs of ``site`` and its QCFS outputs ``[B, …, C]``; ``visible`` (broadcast) says which count."""
        scale, levels = site.scale.detach().float(), site.levels
        unit = scale / levels
        own = (out - qcfs(x, scale, levels, site.signed)).abs() / unit
        off = (out - target) / unit
        away = (out - torch.minimum(torch.maximum(x, -scale if site.signed else 0 * scale), scale)).abs() / unit
        counted = torch.ones_like(out, dtype=torch.bool) if visible is None else visible.expand(out.shape)
        seen = [((value > 0.5) & counted).sum() for value in (off, -off, own)]
        values = torch.stack([*seen, (away * counted).sum()]).double().cpu()
        self.sites[site.name] = self.sites.get(site.name, torch.zeros(4).double()) + values
        self.neurons[site.name] = self.neurons.get(site.name, 0) + int(counted.sum())

    def add_layer(self, name: str, readouts: Iterable[Tensor], target: Tensor) -> None:
        """Readouts of a layer after each timestep, each of the shape of ``target``: what it gives out in the QCFS model."""
        errors = [float(alignment(value, target)) for value in readouts]
        earlier = self.errors.get(name, [0.0] * len(errors))
        self.errors[name] = [before + error for before, error in zip(earlier, errors, strict=True)]

    def of(self, sites: Sequence[Site]) -> list[SiteDiagnosis]:
        ran = [site.name for site in sites if site.name in self.sites]
        return [SiteDiagnosis(n, *(self.sites[n] / max(1, self.neurons[n])).tolist()) for n in ran]


def _compare(model: PreTrainedModel, inputs: Mapping[str, Any], sums: _Sums) -> Tensor:
    """Run both networks on one batch, add what differs to ``sums``, return the QCFS model's logits."""
    clock, wanted, outputs = clock_of(model), {}, {}

    def keep(site: Site, args: tuple[Tensor, ...], out: Tensor) -> None:
        wanted[site.name] = out.float()

    def compare(site: Site, args: tuple[Any, ...], out: Tensor) -> None:
        target = wanted.get(site.name)
        if target is not None:
            x, held = (readout(value.float(), clock) for value in (args[0], out))
            sums.add(site, x, held, target, args[1] if len(args) > 1 else None)

    def layer(name: str) -> Any:
        def hook(block: nn.Module, args: Any, out: Any) -> None:
            rows = out[0] if isinstance(out, tuple) else out
            if clock.folds:
                split = over_time(rows, clock)
                sums.add_layer(name, (said(split[:t], clock) for t in range(1, len(split) + 1)), outputs[name])
            else:
                outputs[name] = rows

        return hook

    blocks = [block.register_forward_hook(layer(name)) for name, block, _ in sums.layers if block is not None]
    try:
        with as_qcfs(model), _hooked(sums.layers, keep):
            logits = logits_of(model(**inputs, **without_cache(model)))
        with _hooked(sums.layers, compare):
            model(**inputs, **without_cache(model))
    finally:
        for handle in blocks:
            handle.remove()
    return logits


@contextmanager
def _hooked(layers: Sequence[_Layer], hook: Any) -> Iterator[None]:
    handles = [site.register_forward_hook(hook) for _, _, sites in layers for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _never_lagging(sites: Sequence[Site]) -> Iterator[None]:
    """Every neuron of ``sites`` holds at each timestep what its QCFS unit would of the running value."""
    with _hooked([("", None, list(sites))], _settled):
        yield


def _settled(site: Site, args: tuple[Any, ...], out: Tensor) -> Tensor:
    config = site.clock.config
    rows = site.over_time(args[0].float())
    stepwise = config.coding == "rate" and config.rows == "step"
    times = torch.arange(1, len(rows) + 1, device=rows.device).view(-1, *[1] * (rows.ndim - 1))
    running = rows.cumsum(0) / times if stepwise else rows
    held = qcfs(running, site.scale.detach().float(), site.levels, site.signed)
    if stepwise:  # what the mean moved by
        held = torch.diff(held * times, dim=0, prepend=torch.zeros_like(held[:1]))
    return held.flatten(0, 1).to(out.dtype)


def _distance(model: PreTrainedModel, batches: Sequence[Mapping[str, Any]], targets: Sequence[Tensor]) -> float:
    found = (
        float(logits_loss(logits_of(model(**inputs, **without_cache(model))), target))
        for inputs, target in zip(batches, targets, strict=True)
    )
    return sum(found) / len(batches)
