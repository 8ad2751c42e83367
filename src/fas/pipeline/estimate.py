"""Memory and time of each stage of a conversion, by parts.

A stage holds, at its peak (bytes; P is what the parameters take in fp32, whatever ``--dtype`` says, which is for evaluation):

* *process*: Python and its libraries, `PROCESS`; on a GPU torch's own context, `CONTEXT`, in place of it
* *data*: tokens and texts, or encoded images, which stay from the beginning to the end
* *weights*: P for each model that is there: in Stage 1 the student and the ANN (its teacher), and where the head is new the
  control, too
* *AdamW's moments*: 2 P; *gradients*: what is left after a backward pass that was traced, P
* *activations*: what else is alive at the peak of a pass, traced (`fas.pipeline.forwards`): the layers' and QCFS units' saved
  tensors, attention maps, logits of the vocabulary and their distance to the teacher's; T·B rows where time is folded
* *samples*: what scales and neurons are fitted on, those of scales for as many sites at a time as there is room for
* *fragments*: `HOLES` (or `HOLES_OF_IMAGES`) of activations and samples: freed memory stays (`fas.runtime.memory`), in holes
  that the next tensor does not always fit, all the more between samples, which stay

Time is operations of matrix products by what the machine does a second, and bytes written by what it writes a second (`Speed`);
for Stage 2 the search, `SEARCHES` passes over the rows of each site. Constants are measured (benchmarks/dry_run.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PreTrainedModel

from fas.calibration import CalibrationOptions
from fas.config import SpikingConfig
from fas.conversion.scales import SAMPLES_PER_SITE, in_parts, sample_bytes
from fas.models import Placement, planned
from fas.pipeline.forwards import (
    Architecture,
    Shape,
    calibration_distance,
    evaluation,
    spiking_evaluation,
    training_step,
)
from fas.pipeline.measure import layerwise_target
from fas.pipeline.options import ConvertOptions
from fas.pipeline.stages import block_options, stage1_options
from fas.report.plan import PlannedStage, Speed
from fas.runtime.alive import Cost
from fas.runtime.replay import blocks_of

PROCESS, CONTEXT = 630_000_000, 600_000_000
HOLES = {"activations": 0.3, "samples": 0.7}
HOLES_OF_IMAGES = HOLES | {"activations": 0.6}
SEARCHES = 60
TRIALS = 2
"""How often a block runs for each of its sites in Stage 2: what it is now, and most often the first candidate."""


@dataclass(frozen=True)
class Workload:
    """How much goes through a conversion: examples of one shape, and how many of them at once."""

    training: int
    held_out: int
    evaluation: int
    calibration: int
    example: Shape
    """One of them; batches have its shape."""
    examples: str
    """What they are called."""
    evaluated: int
    """At once where nothing has time; folded, it is divided by T."""
    fitted: int
    """At once where scales are fitted."""
    calibrated: int
    """At once in Stage 2."""
    new_head: bool
    data: int
    """Bytes that the examples take."""
    holes: Mapping[str, float]
    """Share of a part's bytes that lies between its tensors."""

    @property
    def length(self) -> int:
        """Tokens of an example."""
        return self.example.length


class Estimate:
    """The stages of ``options`` for an ``architecture``, of which ``model`` is a model without memory.

    Raises what `planned` raises for a model that FAS does not know.
    """

    def __init__(
        self, options: ConvertOptions, architecture: Architecture, model: PreTrainedModel, work: Workload, speed: Speed
    ) -> None:
        self.options, self.architecture, self.work, self.speed = options, architecture, work, speed
        self.targets = options.configurations()
        self.segments = planned(model, self.targets[0])
        self.placements = [place for _, places in self.segments for place in places]
        self.parameters = sum(p.numel() for p in model.parameters())
        self.weights = 4 * self.parameters
        self.settings = stage1_options(options, self.parameters, work.training)
        self.on_gpu = options.device.startswith("cuda")

    def stages(self) -> list[PlannedStage]:
        """In the order in which they run."""
        trained = self.options.stage1 == "full" or self.options.stage1_finetune_steps > 0
        found = [self.control()] if trained else []
        found += [self.by_blocks() if self.options.stage1 == "blocks" else self.fitting()]
        found += [self.stage1()] if trained else []
        found += [self.stage2(target) for target in self.targets if self.options.stage2]
        return [*found, self.dense_rows(), *(self.spiking_row(target) for target in self.measured())]

    def measured(self) -> list[SpikingConfig]:
        """The SNN's rows: layerwise, and each coding and time."""
        return [layerwise_target(self.targets[0]), *self.targets]

    def control(self) -> PlannedStage:
        """Fine-tuning the ANN, and which of the two is better on held-out data."""
        step = self.architecture.cost(lambda build: training_step(build, self.training_batch))
        judged = self.judged
        batches = 2 * self.work.held_out / self.evaluated.batch
        memory = _larger(self._training_memory(2, step), {"weights": 2 * self.weights, "activations": judged.peak})
        return self._stage(
            "control", f"{self._steps()} of the ANN; both on {self.work.held_out} held-out {self.work.examples}", memory,
            [(self.settings.steps, step), (batches, judged)],
            self.settings.steps * self.training_batch.tokens + 2 * self.work.held_out * self.work.length,
        )  # fmt: skip

    def fitting(self) -> PlannedStage:
        """The scales of all sites, fitted to what they will carry."""
        shape = self._shape(self.work.fitted)
        run = self.architecture.cost(lambda build: evaluation(build, shape, scored=False))
        rows = min(SAMPLES_PER_SITE, self.work.calibration * self.work.length)
        widths = [place.width for place in self.placements if place.spec.kind != "group"]
        parts = in_parts(self.placements, SAMPLES_PER_SITE)
        samples = max((sum(sample_bytes(place, rows) for place in part) for part in parts), default=0)
        fitted = (
            4 * rows * 6 * max(widths, default=0)
        )  # one site at a time: inputs, targets, candidates and their errors
        memory = {"weights": 2 * self.weights, "samples": samples, "activations": max(run.peak, fitted)}
        tries = Cost(written=48 * 4 * 4 * rows * sum(widths))
        return self._stage(
            "scales", f"{len(self.placements)} sites, {self.work.calibration} {self.work.examples}", memory,
            [(len(parts) * self.work.calibration / shape.batch, run), (1, tries)],
            len(parts) * self.work.calibration * self.work.length,
        )  # fmt: skip

    def stage1(self) -> PlannedStage:
        """Fine-tuning the QCFS model."""
        distill = 0.5 if self.options.distill is None else self.options.distill
        step = self.architecture.cost(lambda build: training_step(build, self.training_batch, self.targets[0], distill))
        models = 3 if self.work.new_head else 2
        return self._stage(
            "Stage 1", f"{self._steps()} of the QCFS model", self._training_memory(models, step),
            [(self.settings.steps, step)], self.settings.steps * self.training_batch.tokens,
        )  # fmt: skip

    def by_blocks(self) -> PlannedStage:
        """Stage 1 a block at a time: of what a step of the whole model takes, one block's part."""
        settings = block_options(self.options, self.parameters, self.work.training)
        step = self.architecture.cost(lambda build: training_step(build, self.training_batch, self.targets[0], 0.0))
        run = self.architecture.cost(lambda build: evaluation(build, self.training_batch, scored=False))
        layers = max(1, self.architecture.layers)
        memory = {
            "weights": 2 * self.weights,
            "AdamW's moments": 2 * self.weights // layers,
            "gradients": step.kept // layers,
            "activations": (step.peak - step.kept) // layers,
        }
        taken = settings.steps * self.training_batch.batch
        passes = 2 * min(self.options.stage1_sequences, taken, self.work.training) / self.training_batch.batch
        tokens = settings.steps * self.training_batch.tokens
        does = (
            f"{settings.steps:,} steps of {self.training_batch.batch} {self.work.examples} for each of {layers} blocks"
        )
        return self._stage("Stage 1 by blocks", does, memory, [(settings.steps, step), (passes, run)], tokens)

    def stage2(self, target: SpikingConfig) -> PlannedStage:
        """Calibration for one coding and time."""
        own, shape = CalibrationOptions(), self._shape(self.work.calibrated)
        batches = min(-(-own.judged_tokens // shape.tokens), -(-self.work.calibration // shape.batch))
        walked, rows = batches * shape.tokens, min(own.search_rows, batches * shape.tokens)
        distance = self.architecture.cost(lambda build: calibration_distance(build, shape, target))
        states = 4 * walked * self.architecture.hidden * (2 * target.timesteps + 1)
        searched = _searched(self.placements)
        samples = 4 * rows * (self._block() + 4 * target.timesteps * max(searched, default=0))
        search = Cost(written=SEARCHES * 4 * rows * target.timesteps * sum(searched))
        passes = (2 + TRIALS * len(searched) / max(1, self.architecture.layers)) * batches
        memory = {"weights": self.weights, "hidden states": states, "samples": samples, "activations": distance.peak}
        tokens = walked * round(passes / batches)
        return self._stage(
            f"Stage 2, {_named(target)}", f"{len(searched)} sites, {walked:,} tokens", memory,
            [(passes, distance), (1, search)], tokens,
        )  # fmt: skip

    def dense_rows(self) -> PlannedStage:
        """The ANN, the control and the QCFS model on the evaluation data."""
        dense = self.judged
        qcfs = self.architecture.cost(
            lambda build: spiking_evaluation(build, self.evaluated, self.targets[0], qcfs=True)
        )
        batches, names = self.work.evaluation / self.evaluated.batch, 1 if self.work.new_head else 2
        memory = {"weights": self.weights, "activations": max(dense.peak, qcfs.peak)}
        return self._stage(
            "evaluation", f"ANN, control and QCFS model on {self.work.evaluation:,} {self.work.examples}", memory,
            [(names * batches, dense), (batches, qcfs)], (names + 1) * self.work.evaluation * self.work.length,
        )  # fmt: skip

    def spiking_row(self, target: SpikingConfig) -> PlannedStage:
        """The SNN on the evaluation data."""
        whole = self.evaluated
        shape = replace(whole, batch=max(1, whole.batch // target.timesteps)) if target.folds_time else whole
        run = self.architecture.cost(lambda build: spiking_evaluation(build, shape, target))
        models = 2 if self.options.before_stage2 and self.options.stage2 else 1
        memory = {"weights": models * self.weights, "activations": run.peak}
        return self._stage(
            f"evaluation, {_named(target)}", f"{self.work.evaluation:,} {self.work.examples}", memory,
            [(models * self.work.evaluation / shape.batch, run)], models * self.work.evaluation * self.work.length,
        )  # fmt: skip

    @cached_property
    def judged(self) -> Cost:
        """A batch of the evaluation through the ANN or the control."""
        return self.architecture.cost(lambda build: evaluation(build, self.evaluated))

    @property
    def training_batch(self) -> Shape:
        """Of Stage 1 and of the control."""
        return self._shape(self.settings.batch_size)

    @property
    def evaluated(self) -> Shape:
        """A batch of the evaluation of what has no time; folded, it is divided by T."""
        return self._shape(self.work.evaluated)

    def _shape(self, batch: int) -> Shape:
        return replace(self.work.example, batch=batch)

    def _block(self) -> int:
        """Channels of the sites of one layer, where they are most."""
        layers = [(_searched(places), len(blocks_of(segment))) for segment, places in self.segments]
        return max((sum(widths) // blocks for widths, blocks in layers if blocks), default=0)

    def _steps(self) -> str:
        return f"{self.settings.steps:,} steps of {self.settings.batch_size} {self.work.examples}"

    def _training_memory(self, models: int, step: Cost) -> dict[str, int]:
        return {
            "weights": models * self.weights,
            "AdamW's moments": 2 * self.weights,
            "gradients": step.kept,
            "activations": step.peak - step.kept,
        }

    def _stage(
        self, name: str, does: str, memory: dict[str, int], runs: Sequence[tuple[float, Cost]], tokens: int
    ) -> PlannedStage:
        fragments = round(sum(share * memory.get(part, 0) for part, share in self.work.holes.items()))
        own = (
            {"context": CONTEXT}
            if self.on_gpu
            else {"process": PROCESS, "data": self.work.data, "fragments": fragments}
        )
        seconds = sum(count * (cost.flops / self.speed.flops + cost.written / self.speed.bytes) for count, cost in runs)
        return PlannedStage(name, does, tokens, memory | own, seconds)


def _larger(*found: dict[str, int]) -> dict[str, int]:
    return max(found, key=lambda memory: sum(memory.values()))


def _searched(placements: Sequence[Placement]) -> list[int]:
    """Channels of the sites whose neurons Stage 2 searches."""
    return [place.width for place in placements if place.spec.kind not in ("group", "norm")]


def _named(target: SpikingConfig) -> str:
    return f"{target.coding.replace('_', '-')}, T={target.timesteps}" if target.folds_time else "layerwise"
