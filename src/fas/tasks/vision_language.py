"""Images with text as examples of image-text-to-text models: answers to questions, and captions."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

from fas import world
from fas.errors import DataError
from fas.progress import Progress, Silent
from fas.tasks.examples import Evaluation, Examples
from fas.tasks.visual import Seen

IGNORED = -100
"""Label of what is not predicted."""
MOST_KEPT = 1 << 30
"""Bytes of encoded images; what is beyond is encoded again each time."""


@dataclass(frozen=True)
class ImageTexts(Examples):
    """Images, prompts and answers of one task, encoded by the model's own processor when they are asked for."""

    HELD_OUT: ClassVar[int] = 2000
    CALIBRATION: ClassVar[int] = 128

    rows: list[Seen]
    processor: ProcessorMixin
    begin: int | None = None
    """Token that `generate` puts in the place of a prompt's first (`first_token`)."""
    prompts: dict[tuple[str, tuple[int, int]], dict[str, list[int]]] = field(default_factory=dict)
    """Encoded prompts by question and size of the image: a processor may give large images more tokens."""
    sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)
    pictures: dict[Path, dict[str, Tensor]] = field(default_factory=dict)
    """Encoded images, shared by their questions, as many as `MOST_KEPT` holds."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Keyword arguments of the model ``[1, …]``; labels are those of the answer and its end."""
        row = self.rows[index]
        prompt = self._prompt(row.question, row.image)
        answer = self._answer(row.answer)
        known = len(prompt["input_ids"])
        longer = {"input_ids": answer, "attention_mask": [1] * len(answer)}
        text = {name: ids + longer.get(name, [0] * len(answer)) for name, ids in prompt.items()}
        text["labels"] = [IGNORED] * known + answer
        return {name: torch.tensor([ids]) for name, ids in text.items()} | self._picture(row.image)

    def picked(self, numbers: Sequence[int]) -> Self:
        return replace(self, rows=[self.rows[number] for number in numbers])

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Texts are padded on the right; images are put one behind the other, those of fewer tiles with tiles of zeros."""
        longest = max(example["labels"].shape[1] for example in examples)
        fill = {"labels": IGNORED, "input_ids": _padding(self.processor)}
        batch = {}
        for name in examples[0]:
            values = [example[name] for example in examples]
            if values[0].ndim == 2 and values[0].shape == examples[0]["labels"].shape:
                values = [F.pad(value, (0, longest - value.shape[1]), value=fill.get(name, 0)) for value in values]
            batch[name] = torch.cat(_same_size(values))
        return batch

    def unpadded(self, size: int) -> list[dict[str, Tensor]]:
        return [
            {name: value for name, value in self.collate([self[n] for n in numbers]).items() if name != "labels"}
            for numbers in self._alike(size)
        ]

    def digest(self) -> bytes:
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(repr((row.image.name, row.image.stat().st_size, row.question, row.answer)).encode())
        return digest.digest()

    def about(self) -> dict[str, Any]:
        return {"sequences": len(self), "images": len({row.image for row in self.rows})}

    @torch.no_grad()
    def evaluate(
        self, model: PreTrainedModel, batch_size: int, progress: Progress | None = None, title: str = ""
    ) -> Evaluation:
        """Exact match and the loss of the answers (nats a token).

        An answer counts if at each of its tokens, and at its end, the likeliest one is that of the reference: then, and only
        then, greedy generation writes exactly the reference.
        """
        progress = progress or Silent()
        training = model.training
        model.eval()
        batches = list(self._alike(batch_size))
        mine = batches[world.rank() :: world.size()]
        progress.start(title or "evaluating", sum(map(len, mine)))
        exact, loss, tokens = (torch.zeros(1, dtype=torch.float64) for _ in range(3))
        for numbers in mine:
            batch = {n: v.to(model.device) for n, v in self.collate([self[i] for i in numbers]).items()}
            wanted = batch.pop("labels")
            logits = model(**batch).logits[:, -wanted.shape[1] :]  # GIT's begin with the image
            found, wanted = logits[:, :-1].float(), wanted[:, 1:]
            loss += float(F.cross_entropy(found.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="sum"))
            tokens += int((wanted != IGNORED).sum())
            exact += int(((found.argmax(-1) == wanted) | (wanted == IGNORED)).all(1).sum())
            progress.advance(len(numbers))
        model.train(training)
        exact, loss, tokens = (float(world.summed(total)) for total in (exact, loss, tokens))
        progress.done(f"exact match {exact / len(self):.4f}")
        return Evaluation(loss / tokens, int(tokens), metrics={"exact_match": exact / len(self)}, items=len(self))

    def _alike(self, size: int) -> Iterator[list[int]]:
        """Numbers of examples, at most ``size`` together, whose texts have one length: nothing is padding."""
        alike = defaultdict(list)
        for number, row in enumerate(self.rows):
            prompt = self._prompt(row.question, row.image)
            alike[len(prompt["input_ids"]) + len(self._answer(row.answer))].append(number)
        for some in alike.values():
            for start in range(0, len(some), size):
                yield some[start : start + size]

    def _picture(self, path: Path) -> dict[str, Tensor]:
        if path in self.pictures:
            return self.pictures[path]
        found = dict(self._image_processor(images=[_opened(path)], return_tensors="pt"))
        if (len(self.pictures) + 1) * sum(value.nbytes for value in found.values()) <= MOST_KEPT:
            self.pictures[path] = found
        return found

    @property
    def _image_processor(self) -> Any:
        return self.processor.image_processor  # type: ignore[attr-defined]

    def _prompt(self, question: str, path: Path) -> dict[str, list[int]]:
        if path not in self.sizes:
            self.sizes[path] = _size(path)
        size = self.sizes[path]
        if (question, size) not in self.prompts:
            processor: Any = self.processor
            found = processor(images=[_opened(path)], text=[prompt_of(processor, question)], return_tensors="pt")
            ids = found["input_ids"]
            end = _end(processor)
            # a tokenizer may give more than the model takes
            known = {*processor.model_input_names, "mm_token_type_ids"}
            keep = -1 if end is not None and ids[0, -1] == end else None  # BERT-like tokenizers end every text
            encoded = {
                name: value[0, :keep].tolist()
                for name, value in found.items()
                if name in known and isinstance(value, Tensor) and value.shape == ids.shape
            }
            if self.begin is not None:
                encoded["input_ids"][0] = self.begin
            self.prompts[question, size] = encoded
        return self.prompts[question, size]

    def _answer(self, text: str) -> list[int]:
        tokenizer: Any = self.processor.tokenizer  # type: ignore[attr-defined]
        end = _end(self.processor)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids if end is None else [*ids, end]


def _same_size(values: list[Tensor]) -> list[Tensor]:
    """``values`` with zeros behind them up to the largest, all axes but the first: images of fewer tiles."""
    most = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    return [
        F.pad(
            value, [more for axis in range(value.ndim - 1, 0, -1) for more in (0, most[axis - 1] - value.shape[axis])]
        )
        for value in values
    ]


def prompt_of(processor: Any, question: str) -> str:
    """``question`` as the model is asked it: by the processor's chat template, else behind the token of the image."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    token = getattr(processor, "image_token", None)
    if getattr(processor, "num_query_tokens", None):  # BLIP-2's puts its tokens in front by itself
        return question
    return question if token is None else f"{token} {question}".strip()


def first_token(config: PretrainedConfig) -> int | None:
    """BLIP's `generate` begins every text with its own token, whatever the tokenizer says; None for other models."""
    return config.get_text_config().bos_token_id if config.model_type == "blip" else None


def asked(processor: ProcessorMixin, image: Path, question: str, config: PretrainedConfig) -> dict[str, Tensor]:
    """Arguments ``[1, …]`` of `generate` with which a model of ``config`` answers ``question`` about ``image``, or captions it
    ("")."""
    begin = first_token(config)
    examples = ImageTexts([Seen(image, question, "")], processor, begin)
    full = examples[0]
    labels = full.pop("labels")
    known = int((labels == IGNORED).sum()) + (begin is not None)  # BLIP drops the end of a prompt, so it needs one
    return {name: value[:, :known] if value.shape == labels.shape else value for name, value in full.items()}


def _end(processor: Any) -> int | None:
    """What ends an answer: the tokenizer's end of text, or BERT's separator."""
    tokenizer = processor.tokenizer
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id


def _padding(processor: Any) -> int:
    return processor.tokenizer.pad_token_id or 0


def _opened(path: Path) -> Any:
    return _read(path, lambda image: image.convert("RGB"))


def _size(path: Path) -> tuple[int, int]:
    return _read(path, lambda image: image.size)  # its header is enough


def _read(path: Path, what: Callable[[Any], Any]) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return what(image)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} is no image that can be read: {error}") from None
