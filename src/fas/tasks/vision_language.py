"""Images with text as examples of image-text-to-text models: answers to questions, and captions."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

from fas import world
from fas.progress import Progress, Silent
from fas.tasks.examples import Evaluation, Examples
from fas.tasks.glue import CAPTIONING, VQA
from fas.tasks.pictures import Picture, Pictures, identity, opened, told_by
from fas.tasks.visual import Seen
from fas.tasks.written import bleu4, vqa_accuracy

IGNORED = -100
"""Label of what is not predicted."""


@dataclass(frozen=True)
class ImageTexts(Examples):
    """Images, prompts and answers of one task, encoded by the model's own processor when they are asked for."""

    HELD_OUT: ClassVar[int] = 2000
    CALIBRATION: ClassVar[int] = 128

    rows: list[Seen]
    pictures: Pictures
    """Encoded images, shared by their questions; its processor encodes prompts, too."""
    begin: int | None = None
    """Token that `generate` puts in the place of a prompt's first (`first_token`)."""
    prompts: dict[tuple[str, tuple[int, int]], dict[str, list[int]]] = field(default_factory=dict)
    """Encoded prompts by question and size of the image: a processor may give large images more tokens."""

    @property
    def processor(self) -> Any:
        """Of images and text."""
        return self.pictures.processor

    @property
    def task(self) -> str:
        """Captions answer no question."""
        return VQA if any(row.question for row in self.rows) else CAPTIONING

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
        return {name: torch.tensor([ids]) for name, ids in text.items()} | self.pictures.encoded(row.image)

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
            digest.update(repr((*told_by(row.image), row.question, row.answer, *row.references)).encode())
        return digest.digest()

    def about(self) -> dict[str, Any]:
        return {"sequences": len(self), "images": len({row.image for row in self.rows})}

    @torch.no_grad()
    def evaluate(
        self, model: PreTrainedModel, batch_size: int, progress: Progress | None = None, title: str = ""
    ) -> Evaluation:
        """Exact match and the loss of the answers (nats a token); where people gave several answers, or captions, also what the
        model writes, scored against them.

        An answer matches if at each of its tokens, and at its end, the likeliest one is that of the reference: then, and only
        then, greedy generation writes exactly the reference.
        """
        progress = progress or Silent()
        training = model.training
        model.eval()
        writes = self.task == CAPTIONING or any(row.references for row in self.rows)
        batches = list(self._alike(batch_size))
        mine = batches[world.rank() :: world.size()]
        progress.start(title or "evaluating", sum(map(len, mine)) * (1 + writes))
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
        people = self._scored(self._written(model, batch_size, progress)) if writes else {}
        model.train(training)
        exact, loss, tokens = (float(world.summed(total)) for total in (exact, loss, tokens))
        match = {"exact_match": exact / len(self)}
        metrics = people | match if any(row.references for row in self.rows) else match | people
        progress.done(", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items()))
        return Evaluation(loss / tokens, int(tokens), metrics=metrics, items=len(self))

    def _scored(self, written: list[str]) -> dict[str, float]:
        """Agreement with people's answers, or BLEU-4 with all captions of an image."""
        if self.task == VQA:
            scores = [
                vqa_accuracy(text, row.references or (row.answer,))
                for text, row in zip(written, self.rows, strict=True)
            ]
            return {"vqa_accuracy": sum(scores) / len(scores)}
        told = defaultdict(list)
        for row in self.rows:
            told[identity(row.image)] += row.references or (row.answer,)
        return {"bleu4": bleu4(written, [told[identity(row.image)] for row in self.rows])}

    def _written(self, model: PreTrainedModel, batch_size: int, progress: Progress) -> list[str]:
        """What greedy generation writes for each row, twice as long as the longest reference at most."""
        alike, texts = defaultdict(list), [""] * len(self)
        for number, row in enumerate(self.rows):
            alike[len(self._prompt(row.question, row.image)["input_ids"])].append(number)
        parts = [some[i : i + batch_size] for some in alike.values() for i in range(0, len(some), batch_size)]
        longest = max(len(self._answer(text)) for row in self.rows for text in (row.answer, *row.references))
        mine = parts[world.rank() :: world.size()]
        found = [(part, self._generated(model, part, 2 * longest, progress)) for part in mine]
        for part, written in [pair for share in world.gathered(found) for pair in share]:
            for number, text in zip(part, written, strict=True):
                texts[number] = text
        return texts

    def _generated(self, model: PreTrainedModel, numbers: list[int], most: int, progress: Progress) -> list[str]:
        tokenizer: Any = self.processor.tokenizer
        inputs = {
            n: v.to(model.device) for n, v in _prompts_of(self.collate([self[i] for i in numbers]), self.begin).items()
        }
        known = inputs["input_ids"].shape[1] - (self.begin is not None)  # what BLIP drops it does not give back
        out = model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=most, do_sample=False, num_beams=1, **padding_for(model, tokenizer)
        )
        progress.advance(len(numbers))
        # decoded as a whole: pieces of a sentence lose the space in front of them
        whole, start = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (out, out[:, :known]))
        return [text[len(begin) :].strip() for text, begin in zip(whole, start, strict=True)]

    def _alike(self, size: int) -> Iterator[list[int]]:
        """Numbers of examples, at most ``size`` together, whose texts have one length: nothing is padding."""
        alike = defaultdict(list)
        for number, row in enumerate(self.rows):
            prompt = self._prompt(row.question, row.image)
            alike[len(prompt["input_ids"]) + len(self._answer(row.answer))].append(number)
        for some in alike.values():
            for start in range(0, len(some), size):
                yield some[start : start + size]

    def _prompt(self, question: str, picture: Picture) -> dict[str, list[int]]:
        size = self.pictures.size(picture)
        if (question, size) not in self.prompts:
            processor: Any = self.processor
            found = processor(images=[opened(picture)], text=[prompt_of(processor, question)], return_tensors="pt")
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


def asked(processor: ProcessorMixin, image: Picture, question: str, config: PretrainedConfig) -> dict[str, Tensor]:
    """Arguments ``[1, …]`` of `generate` with which a model of ``config`` answers ``question`` about ``image``, or captions it
    ("")."""
    begin = first_token(config)
    return _prompts_of(ImageTexts([Seen(image, question, "")], Pictures(processor), begin)[0], begin)


def _prompts_of(batch: dict[str, Tensor], begin: int | None) -> dict[str, Tensor]:
    """``batch`` without answers, of prompts of one length, as `generate` takes them."""
    labels = batch["labels"]
    known = int((labels[0] == IGNORED).long().cumprod(0).sum())
    known += begin is not None  # BLIP drops the end of a prompt, so it needs one
    return {
        name: value[:, :known] if value.shape == labels.shape else value
        for name, value in batch.items()
        if name != "labels"
    }


def _end(processor: Any) -> int | None:
    """What ends an answer: the tokenizer's end of text, or BERT's separator."""
    tokenizer = processor.tokenizer
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id


def padding_for(model: PreTrainedModel, tokenizer: Any) -> dict[str, int | None]:
    """What `generate` is told to put behind texts that have ended; BLIP's takes its own and accepts no other."""
    if model.config.model_type == "blip":
        return {}
    return {"pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id}


def _padding(processor: Any) -> int:
    return processor.tokenizer.pad_token_id or 0
