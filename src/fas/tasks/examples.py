"""What a task trains, calibrates and is measured on: examples that know how to become batches and to score a model."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from fas.progress import Progress
from fas.runtime.control import clock_of
from fas.runtime.spikes import SpikeCount, counting


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over what is predicted (nats a token in language modelling), the task's metrics, and the spikes of an SNN."""

    loss: float
    tokens: int
    spikes: SpikeCount | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """By name, the one that counts first; empty in language modelling, where it is the perplexity."""
    stderr: float | None = None
    """Standard error of the metric that counts, where it is known."""
    items: int | None = None
    """Questions, texts or documents, where the task has them."""
    truncated: int | None = None
    """Items that were longer than the model's context and lost what stood left of it."""
    error: str | None = None
    """Why nothing could be measured; then no other figure counts."""

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def metric(self) -> str:
        """The metric that counts."""
        return next(iter(self.metrics), "perplexity")

    @property
    def value(self) -> float:
        """What it is worth."""
        return self.metrics.get(self.metric, self.perplexity)

    @property
    def badness(self) -> float:
        """Less is better: the loss, or the negative metric of a task that has one."""
        return self.loss if self.metric == "perplexity" else -self.value


class Scored:
    """What a model in any of its forms can be measured on."""

    @abstractmethod
    def evaluate(
        self, model: PreTrainedModel, batch_size: int, progress: Progress | None = None, title: str = ""
    ) -> Evaluation:
        """Score ``model`` on all of it; of several processes (`fas.world`) each runs its share of the batches, and all know the
        result."""

    def evaluate_spiking(
        self, model: PreTrainedModel, batch_size: int, progress: Progress | None = None, title: str = ""
    ) -> Evaluation:
        """`evaluate`, with the spikes of all sites counted. The batch is divided by T, so that memory is that of one batch.

        Of several processes each counts its own batches; all know the sum.
        """
        clock = clock_of(model)
        rows = max(1, batch_size // clock.config.timesteps) if clock.folds else batch_size
        with counting(model) as spikes:
            measured = self.evaluate(model, rows, progress, title)
        spikes.unite()
        return replace(measured, spikes=spikes)


class Examples(Scored, Dataset[dict[str, Any]]):
    """Examples of one task, by number; a `Dataset` for the Trainer."""

    HELD_OUT: ClassVar[int] = 256
    """How many of them are enough to say which of two models is better."""
    CALIBRATION: ClassVar[int] = 32
    """How many of them Stage 2 takes by default."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def picked(self, numbers: Sequence[int]) -> Self:
        """Those with these numbers."""

    @abstractmethod
    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch for training, padded where they differ in length."""

    @abstractmethod
    def unpadded(self, size: int) -> list[dict[str, Tensor]]:
        """Batches without labels, of at most ``size`` examples of one length each: what is fitted on them meets no padding."""

    def for_calibration(self, count: int | None, size: int) -> list[dict[str, Tensor]]:
        """At most ``count`` of them (None: `CALIBRATION`), from all over, in such batches."""
        return self.some(count or self.CALIBRATION).unpadded(size)

    @abstractmethod
    def digest(self) -> bytes:
        """What tells them from other examples."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """How many and how long, for the record."""

    def lengths(self) -> list[int] | None:
        """Tokens of each, by which batches of training are put together; None: all are alike."""
        return None

    def some(self, count: int | None) -> Self:
        """At most ``count`` of them, evenly spaced (None: all)."""
        if count is None or count >= len(self):
            return self
        return self.picked(torch.linspace(0, len(self) - 1, count).long().tolist())
