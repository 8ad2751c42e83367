"""Stage 2: layer by layer, coarse then fine, then one global pass; weights stay frozen.

Of several processes (`fas.world`) the first calibrates the layers, one after the other as they must be, and all take over its
neurons; each step of the global pass, and what is judged, is divided among them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas import world
from fas.calibration.block import LayerReport, calibrate_block
from fas.calibration.fine import GLOBAL_LR, checkpointed, descend, only_trainable, restore
from fas.calibration.kept import KeptLayers
from fas.calibration.options import CalibrationOptions
from fas.calibration.settling import settle
from fas.config import SpikingConfig
from fas.conversion import describe
from fas.conversion.kept import fingerprint_of
from fas.errors import CheckpointError, DataError, FasError
from fas.given import Batches, batches_for, folder_from, model_from, options_from
from fas.losses import better, logits_loss, logits_of
from fas.models import Segment, find_segments
from fas.neurons import Clock, NeuronParameters, Site
from fas.offloading import refuse_offloaded
from fas.progress import Progress, progress_from
from fas.runtime.control import as_qcfs, clock_of, refuse_frozen, sites_of, without_cache
from fas.runtime.finite import finite_activations, require_finite
from fas.runtime.replay import batches_of, blocks_of, both_streams, number_of_layers
from fas.sections import Reports


def calibrate(
    model: PreTrainedModel,
    batches: Batches,
    options: CalibrationOptions | Mapping[str, Any] | None = None,
    progress: Progress | bool | None = None,
    resume: Path | str | None = None,
    activations: Path | str | None = None,
) -> Reports[LayerReport]:
    """Calibrate ``model``'s neurons for its present coding and timesteps (`set_timesteps`), in place.

    ``batches`` are keyword arguments of the model (``input_ids`` ``[B, S]`` …), never evaluation data. Without ``options``
    they are those of `CalibrationOptions.for_depth`. The target is the QCFS model that the SNN was converted from. ``resume``:
    a folder that keeps every finished layer; a calibration that was killed goes on from there and ends the same, bit for bit.
    ``activations``: a folder for the hidden states of both streams, which stay in memory without one. Returns one report a
    layer. Raises `DataError` without batches, and where activations on them are not finite; `FasError` if the model is no SNN
    or is in the layerwise schedule, which has no temporal error to calibrate away; `CheckpointError` for weights that are not
    finite, if ``resume`` holds layers of another calibration or a folder cannot be written. Several processes must all call
    it with the same model and batches.
    """
    model_from(model, "fas.calibrate", nn.Module)
    clock, progress = clock_of(model), progress_from(progress)
    given = options_from(options, CalibrationOptions, "fas.calibrate")
    options = given or CalibrationOptions.for_depth(number_of_layers(model))
    kept = None if resume is None else folder_from(resume, "resume", "fas.calibrate")
    place = None if activations is None else folder_from(activations, "activations", "fas.calibrate")
    listed = _checked(model, batches)
    with clock.changing("fas.calibrate"):
        return _calibrate(model, clock, listed, options, progress, kept, _folder(place))


def _calibrate(
    model: PreTrainedModel,
    clock: Clock,
    listed: Sequence[Mapping[str, Any]],
    options: CalibrationOptions,
    progress: Progress,
    resume: Path | None,
    place: Path | None,
) -> Reports[LayerReport]:
    refuse_frozen(clock, "fas.calibrate")
    key = clock.config.neuron_key
    sites = [site for site in sites_of(model).values() if site.calibrates]
    training = model.training
    model.eval()
    earlier = [site.parameters_for(clock.config) for site in sites]
    parameters = [site.add_parameters(key) for site in sites]
    fresh = [copy.deepcopy(entry.state_dict()) for entry in parameters]
    try:
        target = _Target(model, listed, options)
        uncalibrated = target.sound_distance()

        if options.settle:
            world.once(lambda: settle(model, listed, progress, parameters))
            if math.isfinite(found := target.distance()):
                fresh, uncalibrated = [copy.deepcopy(entry.state_dict()) for entry in parameters], found
            else:  # finite on the few tokens that schedules are compared on only
                restore(parameters, fresh)

        def layers() -> list[LayerReport]:
            fingerprint = "" if resume is None else fingerprint_of(model.state_dict().items(), listed, options, key)
            kept = None if resume is None else KeptLayers(resume, fingerprint)
            return [
                report
                for segment in find_segments(model)
                for report in _segment(model, segment, listed, sites, options, progress, kept, place)
            ]

        settled = options.settle and uncalibrated <= options.settled_within
        reports = [] if settled else world.once(layers)
        if world.size() > 1:
            world.same_as_first([value for entry in parameters for value in entry.state_dict().values()])
        by_layer = end = uncalibrated if settled else target.distance()
        priced = options.spike_price and by_layer < math.inf  # with a price, silence is worth some distance
        if not settled and not priced:
            end = _better(model, parameters, fresh, target.distance, by_layer, uncalibrated)
        if options.global_steps:
            every_block = [block for segment in find_segments(model) for block in blocks_of(segment)]
            with only_trainable(model, parameters), checkpointed(every_block):
                end = descend(
                    parameters, target.part_of, len(listed), options.global_steps, target.distance, end,
                    GLOBAL_LR[clock.config.coding], progress, together=True,
                )  # fmt: skip
        summary = _summary(model, options, settled, uncalibrated, by_layer, end)
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
    return Reports(reports)


def _checked(model: PreTrainedModel, batches: Batches) -> list[dict[str, Any]]:
    """``batches`` of a ``model`` that can be calibrated on them."""
    if not clock_of(model).folds:
        raise FasError("Stage 2 calibrates time: convert the model first and choose schedule='synchronous'")
    refuse_offloaded(model, "fas.calibrate")
    require_finite(model)
    return batches_for(model, batches, "fas.calibrate", whole=True)


def _summary(
    model: PreTrainedModel, options: CalibrationOptions, settled: bool, uncalibrated: float, by_layer: float, end: float
) -> str:
    """What Stage 2 did to the distance between the logits of the SNN and of the QCFS model."""
    regression = getattr(model.config, "problem_type", None) == "regression"
    kind, unit = ("squared error", "") if regression else ("KL", " nats")
    if settled:
        return f"logits {kind} {end:.4f}{unit} by schedules; layers stay, for this is within {options.settled_within:g}"
    summary = f"logits {kind} {uncalibrated:.4f} uncalibrated → {by_layer:.4f} by layer → {end:.4f}{unit}"
    if not end < uncalibrated and not options.spike_price:
        summary += "; no better, so the uncalibrated neurons stay"
    return summary


def _better(
    model: PreTrainedModel,
    parameters: Sequence[NeuronParameters],
    fresh: Sequence[dict[str, Tensor]],
    distance: Callable[[], float],
    calibrated: float,
    uncalibrated: float,
) -> float:
    """Keep the parts of a calibration that help, or nothing of it where it is no better in the end; the distance then."""
    end = keep_what_helps(_in_parts(model, parameters, fresh), distance, calibrated)
    if end < uncalibrated:
        return end
    restore(parameters, fresh)
    return uncalibrated


PARTS = 4
"""Groups of layers that are judged apart."""
_Part = list[tuple[NeuronParameters, dict[str, Tensor]]]


def _in_parts(
    model: PreTrainedModel, parameters: Sequence[NeuronParameters], fresh: Sequence[dict[str, Tensor]]
) -> list[_Part]:
    """The parameters of each of `PARTS` groups of layers, beside what they were before."""
    before = {id(entry): values for entry, values in zip(parameters, fresh, strict=True)}
    blocks = [block for segment in find_segments(model) for block in blocks_of(segment)]
    parts: list[_Part] = [[] for _ in range(min(PARTS, len(blocks)))]
    for index, block in enumerate(blocks):
        inside = [module for module in block.modules() if isinstance(module, NeuronParameters) and id(module) in before]
        parts[index * len(parts) // len(blocks)] += [(entry, before[id(entry)]) for entry in inside]
    return [part for part in parts if part]


def keep_what_helps(parts: Sequence[_Part], distance: Callable[[], float], least: float) -> float:
    """Undo every part of a calibration without which the network is closer; ``least`` is its distance with all of them.

    Returns the distance in the end. A single part is not undone: then all or nothing counts.
    """
    for part in parts if len(parts) > 1 else ():
        found = [copy.deepcopy(entry.state_dict()) for entry, _ in part]
        restore([entry for entry, _ in part], [values for _, values in part])
        without = distance()
        if better(without, least):
            least = without
        else:
            restore([entry for entry, _ in part], found)
    return least


def _segment(
    model: PreTrainedModel,
    segment: Segment,
    batches: Sequence[Mapping[str, Any]],
    sites: Sequence[Site],
    options: CalibrationOptions,
    progress: Progress,
    kept: KeptLayers | None,
    place: Path | None,
) -> list[LayerReport]:
    """The layers of one segment, one after the other."""
    config, blocks = clock_of(model).config, blocks_of(segment)
    progress.start(f"Stage 2, {described(config)}", len(blocks) * (1 + options.align_steps) + options.global_steps)
    inside = {site for block in blocks for site in block.modules() if isinstance(site, Site)}
    outside = [site.name for site in sites if site not in inside and site.name.startswith(segment.name)]
    if outside:
        progress.note(f"{', '.join(outside)}: outside the layers, calibrated in the global pass only")
    with ExitStack() as stack:
        spiking, targets = both_streams(stack, model, segment, batches, model.device, place, options.walked_tokens)
        return [
            calibrate_block(model, block, index, f"{segment.name}.{index}", spiking, targets, options, progress, kept)
            for index, block in enumerate(blocks)
        ]


def _folder(path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{path} for activations could not be written ({error}); choose another folder"
        ) from error
    return Path(path)


def described(config: SpikingConfig) -> str:
    """The coding and time that are calibrated, for people."""
    if config.coding == "rate":
        return f"rate ({config.rows} rows), T={config.timesteps}"
    return f"sigma-delta, T={config.timesteps}, from steps {','.join(map(str, config.step_schedule))}"


class _Target:
    """How far the SNN's logits are from the QCFS model's on the calibration batches, whose logits would fill the memory."""

    def __init__(
        self, model: PreTrainedModel, batches: Sequence[Mapping[str, Any]], options: CalibrationOptions
    ) -> None:
        self.model, self.batches, self.temperature = model, batches, options.temperature
        first = (next(v for v in batch.values() if isinstance(v, Tensor))[..., None] for batch in batches)
        self.judged = batches_of(first, options.judged_tokens)

    def _loss(self, batch: Mapping[str, Any]) -> Tensor:
        """KL(QCFS model ‖ SNN) on one batch, in nats per token."""
        inputs = {**batch, **without_cache(self.model)}
        with as_qcfs(self.model), torch.no_grad():
            wanted = logits_of(self.model(**inputs))
        return logits_loss(logits_of(self.model(**inputs)), wanted, self.temperature)

    def part_of(self, index: int) -> Tensor:
        """This process's part of the loss of one batch: the parts of all add up to its loss, as the means of equal numbers of
        tokens a sequence do. Batches whose tensors differ in length cannot be cut, and every process computes all of them."""
        if world.size() == 1:
            return self._loss(self.batches[index])
        batch = self.batches[index]
        counts = {len(value) for value in batch.values() if isinstance(value, Tensor)}
        if len(counts) != 1:
            return self._loss(batch) / world.size()
        (count,) = counts
        mine = world.share(count)
        if mine.start == mine.stop:
            return torch.zeros((), device=self.model.device, requires_grad=True)
        cut = {name: value[mine] if isinstance(value, Tensor) else value for name, value in batch.items()}
        return self._loss(cut) * ((mine.stop - mine.start) / count)

    def sound_distance(self) -> float:
        """As `distance`; raises `DataError` with the first module whose output is not finite, where it is not."""
        found = self.distance()
        if not math.isfinite(found):
            with finite_activations(self.model, "the calibration data"):
                self.distance()
            raise DataError(
                "the logits are not finite on the calibration data; start from a sound model, or a wider dtype"
            )
        return found

    @torch.no_grad()
    def distance(self) -> float:
        """The loss over the batches that are judged on, without gradient."""
        parts = [float(self.part_of(index)) for index in range(self.judged)]
        return sum(world.summed(torch.tensor(parts, dtype=torch.float64)).tolist()) / self.judged
