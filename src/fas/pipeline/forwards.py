"""The forward and backward passes of a conversion, run for their `Cost` alone on models without values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import astuple, dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion import convert
from fas.conversion.install import install
from fas.losses import logits_loss
from fas.models import planned
from fas.pipeline.traced import Cost, shapes_only, traced
from fas.runtime.control import as_qcfs, without_cache
from fas.training import Stage1Options
from fas.training.stage1 import Stage1Trainer

Build = Callable[[], PreTrainedModel]
ALIKE, ALTERNATING = (2, 3), (2, 4)
"""Layers of the two models that are run in place of a deep one, by whether its layers are all of one kind."""


@dataclass(frozen=True)
class Architecture:
    """A model's configuration, and the class that makes it a model."""

    config: PreTrainedConfig
    auto_class: Any

    @property
    def layers(self) -> int:
        """Of the whole model."""
        return self.config.get_text_config().num_hidden_layers

    def build(self, layers: int | None = None) -> PreTrainedModel:
        """The model, or one with only its first ``layers``; without its weights."""
        config = copy.deepcopy(self.config)
        if layers is not None:
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
        return self.auto_class.from_config(config)

    def cost(self, run: Callable[[Build], Cost]) -> Cost:
        """Cost of ``run`` with the whole model: of a deep one from two of few layers, for it grows evenly with them (from the
        second on: what stands in front of the first is at its peak alone)."""
        few, more = ALIKE if len(set(getattr(self.config, "layer_types", None) or ())) <= 1 else ALTERNATING
        if self.layers <= few + more:
            return run(self.build)
        first, second = (run(lambda n=n: self.build(n)) for n in (few, more))
        share = (self.layers - few) / (more - few)
        return Cost(*(round(a + share * (b - a)) for a, b in zip(astuple(first), astuple(second), strict=True)))


@dataclass(frozen=True)
class Shape:
    """A batch: ``labelled`` texts or blocks of running text ``[batch, length]``."""

    batch: int
    length: int
    labelled: bool = False

    @property
    def tokens(self) -> int:
        """Of the batch."""
        return self.batch * self.length

    def inputs(self, labels: bool = True) -> dict[str, Tensor]:
        """Arguments of the model; call it inside `shapes_only`."""
        ids = torch.zeros(self.batch, self.length, dtype=torch.long)
        if not self.labelled:
            return {"input_ids": ids} | ({"labels": ids} if labels else {})
        return {"input_ids": ids} | ({"labels": ids[:, 0]} if labels else {})


def training_step(build: Build, shape: Shape, config: SpikingConfig | None = None, distill: float = 0.0) -> Cost:
    """One step of Stage 1 without its optimizer: of the QCFS model for ``config``, or of the ANN without one; ``distill``
    above 0 with a teacher. What is kept in the end are the gradients."""
    with shapes_only():
        student, teacher = build(), build().eval() if distill else None
        if config is not None:
            install(student, planned(student, config), config, stage="qcfs")
        student.train()
        # of the Trainer the loss alone is wanted
        trainer: Any = SimpleNamespace(options=Stage1Options(distill=distill), teacher=teacher, budget=None)
        inputs = shape.inputs()
        if student.config.num_labels == 1 and shape.labelled:
            inputs["labels"] = inputs["labels"].float()
        return traced(lambda: Stage1Trainer.compute_loss(trainer, cast(Any, student), inputs).backward())


def evaluation(build: Build, shape: Shape) -> Cost:
    """One batch through the ANN, with the loss of running text."""
    with shapes_only(), torch.no_grad():
        model = build().eval()
        inputs = shape.inputs(labels=not shape.labelled)
        return traced(lambda: model(**inputs, **without_cache(model)))


def spiking_evaluation(build: Build, shape: Shape, config: SpikingConfig, qcfs: bool = False) -> Cost:
    """The same through the SNN, T·B rows, or through its QCFS model."""
    with shapes_only(), torch.no_grad():
        model = _spiking(build, config)
        inputs = shape.inputs(labels=not shape.labelled) | without_cache(model)
        with as_qcfs(model) if qcfs else torch.no_grad():
            return traced(lambda: model(**inputs))


def calibration_distance(build: Build, shape: Shape, config: SpikingConfig) -> Cost:
    """One batch through the QCFS model and the SNN, and the distance of their logits."""
    with shapes_only(), torch.no_grad():
        model = _spiking(build, config)
        inputs = shape.inputs(labels=False) | without_cache(model)

        def distance() -> Tensor:
            with as_qcfs(model):
                wanted = model(**inputs).logits
            return logits_loss(model(**inputs).logits, wanted)

        return traced(distance)


def _spiking(build: Build, config: SpikingConfig) -> PreTrainedModel:
    model = build().eval()
    install(model, planned(model, config), config, stage="qcfs")
    return convert(model)
