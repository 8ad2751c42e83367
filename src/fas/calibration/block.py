"""Stage 2 of one block: its sites one after the other, then their neurons together by the gradient of the block's readout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fas.calibration.fine import descend, only_trainable
from fas.calibration.kept import KeptLayers
from fas.calibration.options import CalibrationOptions
from fas.calibration.sites import Trial, calibrate_sites, observing
from fas.errors import DataError
from fas.losses import alignment
from fas.neurons import Clock, Site
from fas.progress import Progress
from fas.runtime.control import as_qcfs, clock_of
from fas.runtime.folding import readout
from fas.runtime.replay import Stream, batches_of, run_block


@dataclass
class LayerReport:
    """Relative error of one layer's readout against the QCFS model's, on the batches that candidates are judged on:
    uncalibrated, after its sites' search and fit, after the gradient of the whole layer."""

    name: str
    before: float
    by_site: float
    by_layer: float


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
    few = batches_of((cast(Tensor, stream.hidden) for stream in targets), options.judged_tokens)
    known = kept.load(name, sites) if kept is not None else None
    share = -(-options.search_rows // few)
    with as_qcfs(model), observing(sites if known is None else [], clock, few, share, outputs=True) as encodings:
        _move(block, index, targets[:few], clock)
    with as_qcfs(model):
        _move(block, index, targets[few:], clock)
    if known is not None:
        progress.advance(1 + options.align_steps, f"layer {index} was calibrated before the interruption")
        _move(block, index, spiking, clock)
        return LayerReport(**known)

    def loss_of(batch: int) -> Tensor:
        return error_of(batch, run_block(block, index, spiking[batch], clock))

    def error_of(batch: int, rows: Tensor) -> Tensor:
        return alignment(readout(rows, clock), cast(Tensor, targets[batch].hidden))

    def tried(batch: int) -> float:
        rows = run_block(block, index, spiking[batch], clock)
        spiking[batch].ahead = rows
        return float(error_of(batch, rows))

    @torch.no_grad()
    def judged() -> float:
        return sum(tried(batch) for batch in range(few)) / few

    trial = Trial(block, clock, judged, few, share)
    before, by_site = calibrate_sites(sites, trial, encodings(), options)
    if sites and not math.isfinite(by_site):
        raise DataError(
            f"the output of {name} is not finite on the calibration data, or too large to be compared, with whatever neurons; "
            "start from a sound model, or a wider dtype"
        )
    progress.advance(1, f"layer {index} error {before:.4f} → {by_site:.4f}")
    by_layer, done = by_site, few  # the sites' last trial was of what they have now
    if options.align_steps and sites:
        chosen = [entry for site in sites if (entry := site.parameters_for(clock.config)) is not None]
        done = 0
        with only_trainable(model, chosen):
            by_layer = descend(chosen, loss_of, len(spiking), options.align_steps, judged, by_site, progress=progress)
    report = LayerReport(name, before, by_site, by_layer)
    if kept is not None:
        kept.store(name, sites, asdict(report))
    for stream in spiking[:done]:
        stream.step()
    _move(block, index, spiking[done:], clock)
    return report


@torch.no_grad()
def _move(block: nn.Module, index: int, streams: Sequence[Stream], clock: Clock) -> None:
    """Move ``streams`` past ``block``."""
    for stream in streams:
        stream.hidden = run_block(block, index, stream, clock)
