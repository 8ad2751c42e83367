"""What all stages of one conversion share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fas.pipeline.load import load_saved
from fas.pipeline.measure import evaluation_batch, labelled_batch
from fas.pipeline.options import ConvertOptions
from fas.pipeline.origin import Source
from fas.pipeline.workspace import Workspace
from fas.progress import Progress
from fas.tasks.examples import Examples
from fas.tasks.glue import LANGUAGE_MODELING
from fas.training import Lora

CALIBRATION_BATCH = 4
"""Examples in a batch of Stage 2, where there are T·B rows."""


@dataclass
class Run:
    """What all stages share."""

    options: ConvertOptions
    workspace: Workspace
    progress: Progress
    source: Source
    device: torch.device

    @property
    def evaluation(self) -> Examples:
        """What reported figures are measured on."""
        return self.source.evaluation

    @property
    def at_once(self) -> int:
        """Examples that are measured together; labelled ones see to their length themselves."""
        if self.options.task == LANGUAGE_MODELING:
            return evaluation_batch(self.source.evaluation.about()["length"])
        return labelled_batch(self.options.task, self.device.type == "cuda")

    def calibration_batches(self, size: int = CALIBRATION_BATCH) -> list[dict[str, Tensor]]:
        """Evenly spaced training examples, in batches small enough for T·B rows."""
        batches = self.source.training.for_calibration(self.options.calibration_sequences, size)
        return batches_on(self.device, batches)

    def load(self, stage: str) -> PreTrainedModel:
        return load_saved(self.workspace.path(stage), self.device)


def adapters_of(options: ConvertOptions) -> Lora | None:
    """What Stage 1 trains instead of the weights, if it is asked to."""
    return Lora(options.lora_rank, options.lora_alpha) if options.stage1 == "lora" else None


def batches_on(device: torch.device, batches: Iterable[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """``batches`` where the model is."""
    return [{name: value.to(device) for name, value in batch.items()} for batch in batches]
