"""The forward and backward passes of a conversion, run for their `Cost` alone on models without values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from fas.config import SpikingConfig
from fas.conversion import convert
from fas.conversion.install import install
from fas.losses import logits_loss, logits_of
from fas.models import planned
from fas.pipeline.traced import shapes_only
from fas.runtime.alive import Cost, traced
from fas.runtime.control import as_qcfs, without_cache
from fas.training import Stage1Options
from fas.training.stage1 import Stage1Trainer

Build = Callable[[], PreTrainedModel]
PARTS = ("", "text_config", "vision_config", "qformer_config")
"""Where a configuration says how many layers a stack has: itself, or one of its parts."""
FEW = 2
"""Layers of the stacks that are run in place of deep ones, beside those that nothing reads."""


@dataclass(frozen=True)
class Stack:
    """Layers of a model, one behind the other, of whose kinds every ``period``-th is alike."""

    part: str
    """Of the configuration."""
    layers: int
    hidden: int
    few: int
    period: int

    @property
    def deep(self) -> bool:
        """Whether two models of few layers are less than the whole."""
        return self.layers > 2 * self.few + self.period


@dataclass(frozen=True)
class Architecture:
    """A model's configuration, and the class that makes it a model."""

    config: PreTrainedConfig
    auto_class: Any

    @property
    def stacks(self) -> list[Stack]:
        """All stacks of layers that the configuration describes."""
        found = [(part, _part(self.config, part)) for part in PARTS]
        return [
            Stack(part, own.num_hidden_layers, own.hidden_size, FEW + _unread(self.config, part), _period(own))
            for part, own in found
            if getattr(own, "num_hidden_layers", None)
        ]

    @property
    def layers(self) -> int:
        """Of the whole model."""
        return sum(stack.layers for stack in self.stacks)

    @property
    def hidden(self) -> int:
        """Channels of the widest stack between its layers."""
        return max(stack.hidden for stack in self.stacks)

    def build(self, layers: Mapping[str, int] | None = None) -> PreTrainedModel:
        """The model, or one whose stacks have only their first ``layers``, by part; without its weights."""
        config = copy.deepcopy(self.config)
        for part, count in (layers or {}).items():
            own = _part(config, part)
            own.num_hidden_layers = count
            if getattr(own, "layer_types", None):
                own.layer_types = own.layer_types[:count]
        with no_init_weights():  # some are drawn until they fit, which what has no values never does
            model = self.auto_class.from_config(config)
        model.tie_weights()
        for module in model.modules():
            for name, method in WITHOUT_VALUES.get(type(module).__name__, {}).items():
                setattr(module, name, method)
        return model

    def cost(self, run: Callable[[Build], Cost]) -> Cost:
        """Cost of ``run`` with the whole model: of deep stacks from one model with few layers in each, and for each stack one
        with some more, for it grows evenly with them (from the second on: what stands in front of the first is at its peak
        alone). The peak is too low where deep stacks have it at another moment than shallow ones (BLIP's, by 0.5 %)."""
        deep = [stack for stack in self.stacks if stack.deep]
        few = {stack.part: stack.few for stack in deep}
        first = astuple(run(lambda: self.build(few)))
        total = [*map(float, first)]
        for stack in deep:
            more = astuple(run(lambda own=few | {stack.part: stack.few + stack.period}: self.build(own)))
            share = (stack.layers - stack.few) / stack.period
            total = [known + share * (b - a) for known, a, b in zip(total, first, more, strict=True)]
        return Cost(*map(round, total))


def _part(config: Any, part: str) -> Any:
    return getattr(config, part, None) if part else config


def _unread(config: Any, part: str) -> int:
    """Layers of a vision tower behind the one whose states LLaVA reads: without those there would be no such state."""
    read = getattr(config, "vision_feature_layer", None) if part == "vision_config" else None
    states = [] if read is None else [read] if isinstance(read, int) else read
    return max((abs(state) - 1 for state in states), default=0)


def _period(config: Any) -> int:
    """Two where kinds of attention alternate; a Q-Former says how often it looks at the image."""
    return getattr(config, "cross_attention_frequency", None) or 1 + (
        len(set(getattr(config, "layer_types", None) or ())) > 1
    )


def _image_tokens(input_ids: Tensor, inputs_embeds: Tensor, image_features: Tensor) -> Tensor:
    """Where tokens of an image stand ``[B, S, 1]``, without a look at how many there are."""
    return (input_ids == 0).unsqueeze(-1)


WITHOUT_VALUES: dict[str, dict[str, Callable[..., Any]]] = {"LlavaModel": {"get_placeholder_mask": _image_tokens}}
"""By class of module: methods that look at values, and what stands in for them."""


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

    def judged(self, model: PreTrainedModel, scored: bool = True) -> Callable[[], Any]:
        """What an evaluation does with a batch, or no more than ``model`` itself; call it inside `shapes_only`."""
        inputs = self.inputs(labels=scored and not self.labelled) | without_cache(model)
        return lambda: model(**inputs)


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


def evaluation(build: Build, shape: Shape, scored: bool = True) -> Cost:
    """One batch through the ANN, with what is measured on it unless it is not ``scored``."""
    with shapes_only(), torch.no_grad():
        return traced(shape.judged(build().eval(), scored))


def spiking_evaluation(build: Build, shape: Shape, config: SpikingConfig, qcfs: bool = False) -> Cost:
    """The same through the SNN, T·B rows, or through its QCFS model."""
    with shapes_only(), torch.no_grad():
        model = _spiking(build, config)
        run = shape.judged(model)
        with as_qcfs(model) if qcfs else torch.no_grad():
            return traced(run)


def calibration_distance(build: Build, shape: Shape, config: SpikingConfig) -> Cost:
    """One batch through the QCFS model and the SNN, and the distance of their logits."""
    with shapes_only(), torch.no_grad():
        model = _spiking(build, config)
        inputs = shape.inputs(labels=False) | without_cache(model)

        def distance() -> Tensor:
            with as_qcfs(model):
                wanted = logits_of(model(**inputs))
            return logits_loss(logits_of(model(**inputs)), wanted)

        return traced(distance)


def _spiking(build: Build, config: SpikingConfig) -> PreTrainedModel:
    model = build().eval()
    install(model, planned(model, config), config, stage="qcfs")
    return convert(model)
