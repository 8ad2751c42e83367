"""Labelled texts as examples of sequence classification or regression, and the metrics of a model on them."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from fas import world
from fas.progress import Progress, Silent
from fas.tasks.examples import Evaluation, Examples
from fas.tasks.glue import TextTask
from fas.tasks.labelled import Labelled, label_of
from fas.tasks.metrics import scored

FULL_BATCH = 128
"""Tokens that one of a batch of evaluation may have; of shorter texts there are as many more."""


FOR_EACH = 4
"""Texts that are calibrated together for each block of text that would be: they are that much shorter."""


@dataclass(frozen=True)
class LabelledExamples(Examples):
    """Encoded texts (or pairs) with the number of their class, or their score."""

    HELD_OUT: ClassVar[int] = 2000
    CALIBRATION: ClassVar[int] = 256

    encoded: list[dict[str, Any]]
    """``input_ids`` and what else the tokenizer gives, and ``labels``."""
    tokenizer: PreTrainedTokenizerBase
    task: TextTask
    truncated: int = 0
    """How many were longer than what the model sees."""

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.encoded[index]

    def picked(self, numbers: Sequence[int]) -> Self:
        return replace(self, encoded=[self.encoded[number] for number in numbers])

    def lengths(self) -> list[int]:
        return [len(example["input_ids"]) for example in self.encoded]

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return dict(DataCollatorWithPadding(self.tokenizer)(list(examples)))

    def unpadded(self, size: int) -> list[dict[str, Tensor]]:
        alike = defaultdict(list)
        for example in self.encoded:
            alike[len(example["input_ids"])].append({k: v for k, v in example.items() if k != "labels"})
        parts = [some[i : i + size] for some in alike.values() for i in range(0, len(some), size)]
        random.Random(0).shuffle(parts)  # the first of them are to have all lengths
        return [self.collate(part) for part in parts]

    def for_calibration(self, count: int | None, size: int) -> list[dict[str, Tensor]]:
        """Each batch holds one of evenly spaced texts and the next ones as long as it, `FOR_EACH` times ``size`` in all."""
        count, each = min(count or self.CALIBRATION, len(self)), FOR_EACH * size
        alike, places = defaultdict(list), []
        for number, length in enumerate(self.lengths()):
            places.append(len(alike[length]))
            alike[length].append(number)
        seen: set[int] = set()
        batches = []
        for first in torch.linspace(0, len(self) - 1, -(-count // each)).long().tolist():
            some = alike[len(self.encoded[first]["input_ids"])]
            turned = some[places[first] :] + some[: places[first]]
            chosen = [number for number in turned if number not in seen][: min(each, count - len(seen))]
            seen |= set(chosen)
            batches += self.picked(chosen).unpadded(each)
        return batches

    def digest(self) -> bytes:
        return hashlib.sha256(repr(self.encoded).encode()).digest()

    def about(self) -> dict[str, Any]:
        return {"sequences": len(self), "length": max(self.lengths(), default=0), "truncated": self.truncated}

    @torch.no_grad()
    def evaluate(
        self, model: PreTrainedModel, batch_size: int, progress: Progress | None = None, title: str = ""
    ) -> Evaluation:
        progress = progress or Silent()
        training = model.training
        model.eval()
        batches = list(self._batches(batch_size))
        mine = batches[world.rank() :: world.size()]  # they get shorter: each process has long and short ones
        progress.start(title or "evaluating", sum(map(len, mine)))
        logits = torch.zeros(len(self), int(model.config.num_labels or 1))
        for numbers in mine:
            batch = self.collate([self.encoded[number] for number in numbers])
            inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
            logits[numbers] = model(**inputs).logits.float().cpu()
            progress.advance(len(numbers))
        model.train(training)
        logits = world.summed(logits)
        wanted = torch.tensor([example["labels"] for example in self.encoded])
        loss, predicted = self._loss(logits, wanted)
        metrics = scored(self.task.metrics, predicted.numpy(), wanted.numpy())
        progress.done(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        return Evaluation(loss, len(self), metrics=metrics)

    def _loss(self, logits: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
        if self.task.regression:
            return float(F.mse_loss(logits[:, 0], wanted)), logits[:, 0]
        return float(F.cross_entropy(logits, wanted)), logits.argmax(1)

    def _batches(self, size: int) -> Iterator[list[int]]:
        """Numbers of examples of similar length together, ``size`` times `FULL_BATCH` tokens at most in one batch."""
        lengths = self.lengths()
        order = sorted(range(len(self)), key=lambda number: (lengths[number], number))
        while order:
            longest = lengths[order[-1]]
            count = size * max(1, FULL_BATCH // longest)
            yield order[-count:]
            del order[-count:]


def encode_labelled(
    tokenizer: PreTrainedTokenizerBase, task: TextTask, names: Sequence[str], rows: Sequence[Labelled], length: int
) -> LabelledExamples:
    """``rows`` as the model reads them, cut at ``length`` tokens (counted); raises `DataError` for a label without number."""
    pairs = [row.pair for row in rows] if any(row.pair is not None for row in rows) else None
    labels = [label_of(task, names, row) for row in rows]
    found = tokenizer([row.text for row in rows], pairs, truncation=True, max_length=length, verbose=False)
    overflowing = tokenizer([row.text for row in rows], pairs, verbose=False)["input_ids"]
    columns = [name for name in tokenizer.model_input_names if name in found]
    encoded = [{name: found[name][i] for name in columns} | {"labels": label} for i, label in enumerate(labels)]
    truncated = sum(len(ids) > length for ids in overflowing)
    return LabelledExamples(encoded, tokenizer, task, truncated)
