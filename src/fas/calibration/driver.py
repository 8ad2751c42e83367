"""Stage 2: layer by layer, coarse then fine, then one global pass; weights stay frozen."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.calibration.fine import GLOBAL_LR, descend, only_trainable
from fas.calibration.kept import KeptLayers, fingerprint_of
from fas.calibration.replay import Stream, blocks_of, checked, record, run_block
from fas.calibration.sites import Trial, batches_of, calibrate_sites, observed
from fas.config import SpikingConfig
from fas.conversion import describe
from fas.errors import ConfigError, FasError
from fas.losses import alignment, logits_kl
from fas.models import find_segments
from fas.neurons import Clock, Site
from fas.progress import Progress, Silent
from fas.runtime.control import as_qcfs, clock_of, sites_of, without_cache
from fas.runtime.folding import readout


@dataclass(frozen=True)
class CalibrationOptions:
    """What Stage 2 does for one coding and time."""

    coarse: bool = True
    """One threshold factor and one initial potential per site."""
    search_steps: bool = True
    """sigma_delta: each site's own step schedule and dead zones, by search; else the configuration's."""
    per_channel: bool = True
    """Then each channel's own best pair of the same candidates (closed form, no gradient)."""
    align_steps: int = 8
    """Gradient steps per layer on the activation-align loss (0: none)."""
    global_steps: int = 24
    """Gradient steps of all sites together on the logits KL against the QCFS model (0: none)."""
    temperature: float = 1.0
    search_rows: int = 512
    """Tokens on which candidates are judged."""
    spike_price: float = 0.0
    """Relative error of a layer that may be paid to save one spike a neuron (0: spikes are free)."""

    def __post_init__(self) -> None:
        if self.spike_price < 0:
            raise ConfigError(f"spike_price={self.spike_price} is not valid: it must be at least 0")
        if self.per_channel and not self.coarse:
            raise ConfigError("per_channel refines the coarse search; set per_channel=False too, or coarse=True")


@dataclass
class LayerReport:
    """Relative error of one layer's readout against the QCFS model's: uncalibrated, after coarse, after fine."""

    name: str
    before: float
    coarse: float
    fine: float


def calibrate(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    options: CalibrationOptions | None = None,
    progress: Progress | None = None,
    resume: Path | str | None = None,
) -> list[LayerReport]:
    """Calibrate ``model``'s neurons for its present coding and timesteps (`set_timesteps`), in place.

    ``batches`` are keyword arguments of the model (``input_ids`` ``[B, S]`` …), never evaluation data. The target is the
    QCFS model that the SNN was converted from. ``resume``: a folder that keeps every finished layer; a calibration that was
    killed goes on from there and ends the same, bit for bit. Returns one report a layer. Raises `DataError` without batches and
    `FasError` if the model is no SNN or is in the layerwise schedule, which has no temporal error to calibrate away;
    `CheckpointError` if ``resume`` holds layers of another calibration.
    """
    options, progress = options or CalibrationOptions(), progress or Silent()
    clock, listed = clock_of(model), checked(batches)
    if not clock.folds:
        raise FasError("Stage 2 calibrates time: convert the model first and choose schedule='synchronous'")
    key = clock.config.neuron_key
    sites = [site for site in sites_of(model).values() if site.calibrates]
    training = model.training
    model.eval()
    earlier = [site.parameters_for(clock.config) for site in sites]
    parameters = [site.add_parameters(key) for site in sites]
    fresh = [copy.deepcopy(entry.state_dict()) for entry in parameters]
    reports: list[LayerReport] = []
    try:
        kept = (
            None
            if resume is None
            else KeptLayers(resume, fingerprint_of(model.state_dict().items(), listed, options, key))
        )
        target = _Target(model, listed, options.temperature)
        uncalibrated = target.distance()
        for segment in find_segments(model):
            spiking = [record(model, segment, batch) for batch in listed]
            with as_qcfs(model):
                targets = [record(model, segment, batch) for batch in listed]
            blocks = blocks_of(segment)
            steps = len(blocks) * (1 + options.align_steps) + options.global_steps
            progress.start(f"Stage 2, {described(clock.config)}", steps)
            inside = {site for block in blocks for site in block.modules() if isinstance(site, Site)}
            outside = [site.name for site in sites if site not in inside and site.name.startswith(segment.name)]
            if outside:
                progress.note(f"{', '.join(outside)}: outside the layers, calibrated in the global pass only")
            for index, block in enumerate(blocks):
                name = f"{segment.name}.{index}"
                reports.append(calibrate_block(model, block, index, name, spiking, targets, options, progress, kept))
        by_layer = end = target.distance()
        if options.global_steps:
            with only_trainable(model, parameters):
                end = descend(
                    parameters, target.loss_of, len(listed), options.global_steps, GLOBAL_LR, progress, before=by_layer
                )
        summary = f"logits KL {uncalibrated:.4f} uncalibrated → {by_layer:.4f} by layer → {end:.4f} nats"
        if not end < uncalibrated and not options.spike_price:  # with a price, fewer spikes are worth some distance
            for entry, values in zip(parameters, fresh, strict=True):
                entry.load_state_dict(values)
            summary += "; no better, so the uncalibrated neurons stay"
    except BaseException:
        for site, before in zip(sites, earlier, strict=True):  # nothing half-calibrated stays, nothing finished is lost
            if before is None:
                del site.neurons[key]
            else:
                site.neurons[key] = before
        raise
    finally:
        model.train(training)
    describe(model)
    progress.done(summary)
    return reports


def described(config: SpikingConfig) -> str:
    """The coding and time that are calibrated, for people."""
    if config.coding == "rate":
        return f"rate ({config.rows} rows), T={config.timesteps}"
    return f"sigma-delta, T={config.timesteps}, from steps {','.join(map(str, config.step_schedule))}"


def calibrate_block(
    model: nn.Module,
    block: nn.Module,
    index: int,
    name: str,
    spiking: Sequence[Stream],
    targets: Sequence[Stream],
    options: CalibrationOptions,
    progress: Progress,
    kept: KeptLayers | None,
) -> LayerReport:
    """Calibrate the sites of one block, unless it is ``kept``, and move both streams past it."""
    found = (module for module in block.modules() if isinstance(module, Site) and module.calibrates)
    sites = sorted(found, key=lambda site: site.order)
    clock = clock_of(model)
    with as_qcfs(model), torch.no_grad():
        few = batches_of((cast(Tensor, stream.hidden) for stream in targets), options.search_rows)
        wanted, encodings = observed(block, index, targets[:few], sites, clock, outputs=True)
        wanted += [run_block(block, index, stream, clock) for stream in targets[few:]]

    def loss_of(batch: int) -> Tensor:
        return alignment(readout(run_block(block, index, spiking[batch], clock), clock), wanted[batch])

    def error() -> float:
        with torch.no_grad():
            return sum(float(loss_of(batch)) for batch in range(len(spiking))) / len(spiking)

    known = kept.load(name, sites) if kept is not None else None
    if known is not None:
        progress.advance(1 + options.align_steps, f"layer {index} was calibrated before the interruption")
        _pass(block, index, spiking, targets, wanted, clock)
        return LayerReport(**known)
    before = error()
    if options.coarse:
        trial = Trial(block, index, spiking, wanted, clock, options.search_rows)
        calibrate_sites(sites, trial, encodings, options.per_channel, options.spike_price, options.search_steps)
    coarse = error() if options.coarse else before
    progress.advance(1, f"layer {index} error {before:.4f} → {coarse:.4f}")
    fine = coarse
    if options.align_steps and sites:
        chosen = [site.parameters_for(clock.config) for site in sites]
        with only_trainable(model, [p for p in chosen if p is not None]):
            fine = descend(
                [p for p in chosen if p is not None],
                loss_of,
                len(spiking),
                options.align_steps,
                progress=progress,
                before=coarse,
            )
    report = LayerReport(name, before, coarse, fine)
    if kept is not None:
        kept.store(name, sites, asdict(report))
    _pass(block, index, spiking, targets, wanted, clock)
    return report


@torch.no_grad()
def _pass(
    block: nn.Module,
    index: int,
    spiking: Sequence[Stream],
    targets: Sequence[Stream],
    wanted: Sequence[Tensor],
    clock: Clock,
) -> None:
    """Move both streams past ``block``; ``wanted`` is what the QCFS model has behind it."""
    for stream, output in zip(targets, wanted, strict=True):
        stream.hidden = output
    for stream in spiking:
        stream.hidden = run_block(block, index, stream, clock)


class _Target:
    """How far the SNN's logits are from the QCFS model's on the calibration batches, whose logits would fill the memory."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Mapping[str, Any]], temperature: float) -> None:
        self.model, self.batches, self.temperature = model, batches, temperature

    def loss_of(self, index: int) -> Tensor:
        """KL(QCFS model ‖ SNN) on one batch, in nats per token."""
        inputs = {**self.batches[index], **without_cache(self.model)}
        with as_qcfs(self.model), torch.no_grad():
            wanted = self.model(**inputs).logits
        return logits_kl(self.model(**inputs).logits, wanted, self.temperature)

    def distance(self) -> float:
        """The same over all batches, without gradient."""
        with torch.no_grad():
            return sum(float(self.loss_of(index)) for index in range(len(self.batches))) / len(self.batches)
