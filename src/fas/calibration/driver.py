"""Stage 2: layer by layer, coarse then fine, then one global pass; weights stay frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.calibration.coarse import search
from fas.calibration.fine import descend, descend_globally, only_trainable
from fas.calibration.replay import Stream, blocks_of, readout, record, run_block
from fas.conversion import describe
from fas.errors import DataError, FasError
from fas.losses import alignment
from fas.models import find_segments
from fas.neurons import Clock, NeuronParameters, Site
from fas.progress import Progress, Silent
from fas.runtime.control import as_qcfs, clock_of, sites_of


@dataclass(frozen=True)
class CalibrationOptions:
    """What Stage 2 does for one coding and time."""

    coarse: bool = True
    """One threshold factor and one initial potential per site."""
    per_channel: bool = True
    """Then each channel's own best pair of the same candidates (closed form, no gradient)."""
    align_steps: int = 16
    """Gradient steps per layer on the activation-align loss (0: none)."""
    global_steps: int = 32
    """Gradient steps of all sites together on the logits KL against the QCFS model (0: none)."""
    temperature: float = 1.0
    search_rows: int = 512
    """Tokens on which candidates are judged."""


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
) -> list[LayerReport]:
    """Calibrate ``model``'s neurons for its present coding and timesteps (`set_timesteps`), in place.

    ``batches`` are keyword arguments of the model (``input_ids`` ``[B, S]`` …), never evaluation data. The target is the
    QCFS model that the SNN was converted from. Returns one report a layer. Raises `DataError` without batches and
    `FasError` if the model is no SNN or is in the layerwise schedule, which has no temporal error to calibrate away.
    """
    options, progress = options or CalibrationOptions(), progress or Silent()
    clock, listed = clock_of(model), list(batches)
    if not listed:
        raise DataError("no calibration batches: give at least one batch of training text")
    if not clock.folds:
        raise FasError("Stage 2 calibrates time: convert the model first and choose schedule='synchronous'")
    key = clock.config.neuron_key
    sites = list(sites_of(model).values())
    training = model.training
    model.eval()
    parameters = [site.add_parameters(key) for site in sites]
    reports: list[LayerReport] = []
    try:
        for segment in find_segments(model):
            spiking = [record(model, segment, batch) for batch in listed]
            with as_qcfs(model):
                targets = [record(model, segment, batch) for batch in listed]
            blocks = blocks_of(segment)
            steps = len(blocks) * (1 + options.align_steps) + options.global_steps
            progress.start(f"Stage 2, {key.replace('_', ' ')}", steps)
            for index, block in enumerate(blocks):
                name = f"{segment.name}.{index}"
                reports.append(_calibrate_block(model, block, index, name, spiking, targets, options, progress))
        summary = _finish_globally(model, parameters, listed, options, progress)
    except BaseException:
        for site in sites:
            del site.neurons[key]  # nothing half-calibrated stays behind
        raise
    model.train(training)
    describe(model)
    progress.done(summary)
    return reports


def _calibrate_block(
    model: nn.Module,
    block: nn.Module,
    index: int,
    name: str,
    spiking: Sequence[Stream],
    targets: Sequence[Stream],
    options: CalibrationOptions,
    progress: Progress,
) -> LayerReport:
    """Calibrate the sites of one block and move both streams past it."""
    sites = [module for module in block.modules() if isinstance(module, Site)]
    clock = clock_of(model)
    with as_qcfs(model), torch.no_grad():
        wanted, encodings = _observed(block, index, targets, sites, clock, outputs=True)

    def loss_of(batch: int) -> Tensor:
        return alignment(readout(run_block(block, index, spiking[batch], clock), clock), wanted[batch])

    def error() -> float:
        with torch.no_grad():
            return sum(float(loss_of(batch)) for batch in range(len(spiking))) / len(spiking)

    before = error()
    if options.coarse:
        for site in sites:
            _calibrate_site(site, block, index, spiking, encodings[site.name], error, options)
    coarse = error()
    progress.advance(1, f"layer {index} error {before:.4f} → {coarse:.4f}")
    fine = coarse
    if options.align_steps and sites:
        chosen = [site.parameters_for(clock.config) for site in sites]
        with only_trainable(model, [p for p in chosen if p is not None]):
            _, fine = descend(
                [p for p in chosen if p is not None], loss_of, len(spiking), options.align_steps, progress
            )
    with torch.no_grad():
        for stream, output in zip(targets, wanted, strict=True):
            stream.hidden = output
        for stream in spiking:
            stream.hidden = run_block(block, index, stream, clock)
    return LayerReport(name, before, coarse, fine)


def _calibrate_site(
    site: Site, block: nn.Module, index: int, spiking: Sequence[Stream], encodings: Tensor, error: Any,
    options: CalibrationOptions,
) -> None:  # fmt: skip
    """Search one site's candidates; keep each refinement only if the block's output comes closer to its target."""
    clock = site.clock
    with torch.no_grad():
        _, inputs = _observed(block, index, spiking, [site], clock, outputs=False)
    rows = inputs[site.name].view(clock.config.timesteps, -1, site.width)
    count = rows.shape[1]
    picked = torch.linspace(0, count - 1, min(count, options.search_rows), device=rows.device).long()
    parameters = site.parameters_for(clock.config)
    assert parameters is not None
    best = error()
    for per_channel in (False, True) if options.per_channel else (False,):
        kept = (parameters.log_threshold.clone(), parameters.v_init.clone(), parameters.a_init.clone())
        choice = search(site, rows[:, picked], encodings[picked], _importance(block, site), per_channel)
        parameters.log_threshold.data.copy_(choice.threshold.log())
        parameters.v_init.data.copy_(choice.v_init)
        parameters.a_init.data.copy_(choice.a_init)
        now = error()
        if now < best:
            best = now
        else:
            for stored, value in zip(
                (parameters.log_threshold, parameters.v_init, parameters.a_init), kept, strict=True
            ):
                stored.data.copy_(value)


def _importance(block: nn.Module, site: Site) -> Tensor:
    """Σ over consumers of ‖W_c‖² per input channel ``[C]``."""
    total = torch.zeros_like(site.log_scale.detach())
    for module in block.modules():
        hooks = module._forward_pre_hooks.values()
        if any(getattr(hook, "site", None) is site for hook in hooks):
            weight = module.weight.detach().float()  # type: ignore[union-attr]
            total += weight.square().sum(0 if isinstance(module, nn.Linear) else 1)
    return total


def _observed(
    block: nn.Module, index: int, streams: Sequence[Stream], sites: Sequence[Site], clock: Clock, outputs: bool
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Run ``block`` on all streams; its outputs, and what each site gave (``outputs``) or was given, tokens flattened."""
    seen: dict[str, list[Tensor]] = {site.name: [] for site in sites}

    def keep(site: Site, args: tuple[Tensor, ...], output: Tensor) -> None:
        value = (output if outputs else args[0]).detach().float()
        rows = clock.config.timesteps if clock.folds else 1
        seen[site.name].append(value.reshape(rows, -1, site.width))

    handles = [site.register_forward_hook(keep) for site in sites]
    try:
        results = [run_block(block, index, stream, clock) for stream in streams]
    finally:
        for handle in handles:
            handle.remove()
    joined = {name: torch.cat(values, dim=1) for name, values in seen.items()}
    return results, {name: value[0] if outputs else value for name, value in joined.items()}


def _finish_globally(
    model: PreTrainedModel,
    parameters: Sequence[NeuronParameters],
    batches: Sequence[Mapping[str, Any]],
    options: CalibrationOptions,
    progress: Progress,
) -> str:
    if not options.global_steps:
        return ""
    with as_qcfs(model), torch.no_grad():
        targets = [
            model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits for batch in batches
        ]
    steps, temperature = options.global_steps, options.temperature
    before, after = descend_globally(model, parameters, batches, targets, steps, temperature, progress)
    return f"logits KL {before:.4f} → {after:.4f} nats"
