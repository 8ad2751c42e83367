"""SNN Calibration (Li et al., ICML 2021): thresholds by MMSE, and biases, or weights, for what is lacking.

Light: site after site, on calibration data, b ← b + E[ā − s̄] by channel, ā the ANN's value, s̄ the SNN's mean over T. For one
value a channel the shift of the initial potential, v₀ ← v₀ + T·E[ā − s̄], says the same and is left out.
Advanced: then, layer after layer, its weights by Adam on ‖s̄ − ā‖² of what the layer hands on, given what the SNN hands to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.given import batches_for
from fas.losses import alignment
from fas.methods.method import Batches, Method, register
from fas.methods.start import KEPT, from_ann, mmse_at, own_parameters
from fas.methods.trained import step_rows
from fas.models import Segment, find_segments
from fas.neurons import Clock, Fired, Site
from fas.progress import Progress
from fas.runtime.control import clock_of, sites_of, without_cache
from fas.runtime.folding import readout
from fas.runtime.replay import Stream, blocks_of, run_block, streams

LR, STEPS = 4e-5, 200
"""Of the advanced pipeline."""


def channel_means(model: PreTrainedModel, batches: Batches, sites: dict[str, Site]) -> dict[str, Tensor]:
    """What each of ``sites`` hands on, by channel ``[C]``, mean over tokens and timesteps."""

    def run() -> None:
        for batch in batches:
            model(**batch, **without_cache(model))

    return _means(sites, run)


@torch.no_grad()
def _means(sites: dict[str, Site], run: Callable[[], object]) -> dict[str, Tensor]:
    """The means of `channel_means` over what ``run`` runs."""
    sums = {name: (torch.zeros(site.width, dtype=torch.float64), 0) for name, site in sites.items()}

    def keep(site: Site, args: Any, out: Tensor) -> None:
        total, count = sums[site.name]
        flat = out.detach().flatten(0, -2).double().cpu()
        sums[site.name] = (total + flat.sum(0), count + len(flat))

    handles = [site.register_forward_hook(keep) for site in sites.values()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / max(1, count)).float() for name, (total, count) in sums.items()}


@contextmanager
def as_ann(model: PreTrainedModel) -> Iterator[None]:
    """All sites let values pass: the ANN, for the length of the context."""
    clock = clock_of(model)
    with clock.changing("a run as ANN"):
        config, neuron = clock.config, clock.neuron
        clock.config = config.replaced(schedule="layerwise", timesteps=config.levels)
        clock.neuron = lambda site, x: Fired(x, torch.zeros_like(x).unsqueeze(0))
        try:
            yield
        finally:
            clock.config, clock.neuron = config, neuron


def _build(model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress) -> None:
    from_ann(model, config, batches, mmse_at(timesteps))
    entries, sites = own_parameters(model, config), sites_of(model)
    with as_ann(model):
        wanted = channel_means(model, batches, {name: sites[name] for name in entries})
    left = {name: sites[name] for name in entries}
    progress.start("SNN Calibration", len(entries))

    def mend(site: Site, means: dict[str, Tensor]) -> None:
        entry = entries[site.name]
        entry.constant.copy_((wanted[site.name] - means[site.name]).to(entry.constant.device))
        del left[site.name]
        progress.advance(1)

    for segment in find_segments(model):
        _mend_blocks(model, segment, batches, left, mend)
        beside = [site for site in left.values() if site in set(segment.module.modules())]  # such as a projector's
        for site in beside:
            mend(site, channel_means(model, batches, {site.name: site}))
    progress.done()


@torch.no_grad()
def _mend_blocks(
    model: PreTrainedModel,
    segment: Segment,
    batches: Batches,
    asked: dict[str, Site],
    mend: Callable[[Site, dict[str, Tensor]], None],
) -> None:
    """Hand the means of those sites of ``segment`` that are ``asked`` for to ``mend``, one after the other; what lies before
    their block runs once."""
    clock = clock_of(model)

    def run(block: nn.Module, index: int) -> list[Tensor]:
        return [run_block(block, index, stream, clock) for stream in given]

    with streams(
        model, segment, batches_for(model, batches, "SNN Calibration", whole=True), model.device, None, "snn"
    ) as given:
        for index, block in enumerate(blocks_of(segment)):
            inside = {module.name for module in block.modules() if isinstance(module, Site)}
            for name, site in [entry for entry in asked.items() if entry[0] in inside]:
                mend(site, _means({name: site}, partial(run, block, index)))
            for stream, hidden in zip(given, run(block, index), strict=True):
                stream.hidden = hidden


def reconstruct(model: PreTrainedModel, batches: Batches, steps: int, progress: Progress) -> None:
    """Train the weights of each layer, one after the other, towards the ANN's mean output; neurons stay as they are."""
    clock, listed = clock_of(model), batches_for(model, batches, "SNN Calibration", whole=True)
    segments = [(segment, blocks_of(segment)) for segment in find_segments(model)]
    progress.start("SNN Calibration, weights", sum(len(blocks) for _, blocks in segments))
    for segment, blocks in segments:
        with ExitStack() as stack:
            with as_ann(model):
                wanted = stack.enter_context(streams(model, segment, listed, model.device, None, "ann"))
            given = stack.enter_context(streams(model, segment, listed, model.device, None, "snn"))
            for index, block in enumerate(blocks):
                with as_ann(model), torch.no_grad():
                    for stream in wanted:
                        stream.hidden = run_block(block, index, stream, clock)
                loss = _trained(block, index, given, wanted, steps, clock)
                with torch.no_grad():
                    for stream in given:
                        stream.hidden = run_block(block, index, stream, clock)
                progress.advance(1, f"layer {index} error {loss:.5f}")
    progress.done()


def _trained(
    block: nn.Module, index: int, given: list[Stream], wanted: list[Stream], steps: int, clock: Clock
) -> float:
    sites = {value for part in block.modules() if isinstance(part, Site) for value in part.parameters()}
    weights = [value for value in block.parameters() if value not in sites]
    block.requires_grad_(False)
    for value in weights:
        value.requires_grad_(True)
    optimizer, loss = torch.optim.Adam(weights, lr=LR), torch.zeros(())
    for step in range(steps):
        stream, target = given[step % len(given)], wanted[step % len(wanted)].hidden
        assert target is not None
        loss = alignment(readout(run_block(block, index, stream, clock), clock), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def _advanced(
    model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress
) -> None:
    _build(model, config, timesteps, batches, progress)
    reconstruct(model, batches, STEPS, progress)


register(
    Method(
        "snn-calibration", "SNN Calibration, light", "Li et al., ICML 2021: MMSE thresholds, b + E[ā − s̄]", "control", _build,
        lambda timesteps: step_rows(timesteps) | KEPT, assumed="48 candidates of the threshold in the place of 95",
    )
)  # fmt: skip
register(
    Method(
        "snn-calibration-advanced", "SNN Calibration, advanced", "Li et al., ICML 2021: also weights, by Adam on ‖s̄ − ā‖²",
        "control", _advanced, lambda timesteps: step_rows(timesteps) | KEPT,
        assumed=f"{STEPS} steps a layer in the place of 5,000; a layer is a transformer block; the error relative to ‖ā‖²",
    )
)  # fmt: skip
