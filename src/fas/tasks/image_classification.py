"""Images of classes: as examples of an image classifier, and of a model that compares images with texts (CLIP, SigLIP)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fas import world
from fas.errors import ConfigError, DataError
from fas.losses import logits_of
from fas.progress import Progress, Silent
from fas.tasks.examples import Evaluation, Examples
from fas.tasks.pictures import Pictures, told_by
from fas.tasks.visual import Seen

SIGLIP_LENGTH = 64
"""Tokens of a text as SigLIP was trained with, and needs (Zhai et al. 2023)."""


@dataclass(frozen=True)
class ImageLabels(Examples):
    """Images with the number of their class. With ``prompts``, each batch holds those of all classes behind its images."""

    HELD_OUT: ClassVar[int] = 2000
    CALIBRATION: ClassVar[int] = 128

    rows: list[Seen]
    pictures: Pictures
    names: tuple[str, ...]
    """Of the classes, in the order of the head, or of the prompts."""
    prompts: dict[str, Tensor] = field(default_factory=dict)
    """Encoded texts ``[classes, S]`` of `prompted`; none for a classifier."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return self.pictures.encoded(row.image) | {"labels": torch.tensor([self._number(row)])}

    def picked(self, numbers: Sequence[int]) -> Self:
        return replace(self, rows=[self.rows[number] for number in numbers])

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Images one behind the other. Classes of a model that knows no labels are called ``classes``."""
        batch = {name: torch.cat([example[name] for example in examples]) for name in examples[0]}
        if self.prompts:
            batch["classes"] = batch.pop("labels")
        return batch | self.prompts

    def unpadded(self, size: int) -> list[dict[str, Tensor]]:
        """Each batch has only prompts of one length, in turn."""
        starts, alike = range(0, len(self), size), list(_of_one_length(self.prompts)) or [{}]
        batches = [self.collate([self[n] for n in range(start, min(start + size, len(self)))]) for start in starts]
        return [
            {n: v for n, v in batch.items() if n not in ("labels", "classes")} | alike[number % len(alike)]
            for number, batch in enumerate(batches)
        ]

    def digest(self) -> bytes:
        digest = hashlib.sha256(repr((self.names, {n: v.tolist() for n, v in self.prompts.items()})).encode())
        for row in self.rows:
            digest.update(repr((*told_by(row.image), row.answer)).encode())
        return digest.digest()

    def about(self) -> dict[str, Any]:
        return {"sequences": len(self), "classes": len(self.names)}

    @torch.no_grad()
    def evaluate(
        self, model: PreTrainedModel, batch_size: int, progress: Progress | None = None, title: str = ""
    ) -> Evaluation:
        """Accuracy, and the cross-entropy of the classes (nats an image)."""
        progress = progress or Silent()
        training = model.training
        model.eval()
        starts = range(0, len(self), batch_size)[world.rank() :: world.size()]
        progress.start(title or "evaluating", sum(min(batch_size, len(self) - start) for start in starts))
        right, loss = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        for start in starts:
            examples = [self[number] for number in range(start, min(start + batch_size, len(self)))]
            batch = {name: value.to(model.device) for name, value in self.collate(examples).items()}
            wanted = batch.pop("classes" if self.prompts else "labels")
            logits = logits_of(model(**batch)).float()
            loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
            right += int((logits.argmax(-1) == wanted).sum())
            progress.advance(len(examples))
        model.train(training)
        right, loss = (float(world.summed(total)) / len(self) for total in (right, loss))
        progress.done(f"accuracy {right:.4f}")
        return Evaluation(loss, len(self), metrics={"accuracy": right}, items=len(self))

    def _number(self, row: Seen) -> int:
        if row.answer not in self.names:
            raise DataError(f"{row.answer!r} ({told_by(row.image)[0]}) is none of the classes {', '.join(self.names)}")
        return self.names.index(row.answer)


def _of_one_length(prompts: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """``prompts`` without padding: those of each length by themselves, at the left of their rows."""
    if "attention_mask" not in prompts:
        if prompts:
            yield prompts
        return
    lengths = prompts["attention_mask"].sum(1)
    for length in lengths.unique().tolist():
        yield {name: value[lengths == length, :length] for name, value in prompts.items()}


def class_names_of(rows: Sequence[Seen], source: str) -> tuple[str, ...]:
    """The classes of ``rows``, sorted; raises `DataError` if there is one only."""
    found = tuple(sorted({row.answer for row in rows}))
    if len(found) < 2:
        raise DataError(f"{source} has one class only ({', '.join(found)}); a classification needs two")
    return found


def prompted(processor: Any, names: Sequence[str], template: str) -> dict[str, Tensor]:
    """``template`` with each name in the place of ``{}``, encoded, ``[classes, S]``. Raises `ConfigError` if it has no such
    place."""
    if "{}" not in template:
        raise ConfigError(f"prompt template {template!r} has no {{}}, in whose place the name of the class is put")
    tokenizer = processor.tokenizer
    siglip = "siglip" in type(processor).__name__.lower()
    fixed: dict[str, Any] = {"padding": "max_length", "max_length": SIGLIP_LENGTH} if siglip else {"padding": True}
    texts = [template.replace("{}", name.replace("_", " ")) for name in names]
    found = tokenizer(texts, truncation=True, return_tensors="pt", **fixed)
    # SigLIP knows no mask: its padding is part of the text
    return {
        name: found[name] for name in tokenizer.model_input_names if name in found and not (siglip and "mask" in name)
    }
