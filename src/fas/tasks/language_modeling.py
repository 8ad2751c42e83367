"""Causal language modelling: documents as blocks of tokens, and their loss under a model in any of its forms."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fas import world
from fas.errors import DataError
from fas.progress import Progress, Silent
from fas.tasks.examples import Evaluation, Examples

ENCODED_AT_ONCE = 1000
"""Documents: a tokenizer holds hundreds of bytes for a token while it works, and the blocks hold eight."""


def encode_blocks(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], length: int, what: str = "text"
) -> Tensor:
    """All documents as one stream of tokens, cut into blocks ``[N, length]``; the rest of the stream is dropped.

    Documents are separated as in `stream_of`. Raises `DataError` where the text does not fill one block.
    """
    stream = stream_of(tokenizer, documents)
    count = len(stream) // length
    if count == 0:
        raise DataError(f"the {what} has {len(stream)} tokens, fewer than one block of {length}; give more text")
    return torch.frombuffer(stream, dtype=torch.long)[: count * length].view(count, length)


def stream_of(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> array[int]:
    """All documents as one stream of tokens, separated by what the tokenizer adds (``<s>`` before each) or, where it adds
    nothing, by its end token behind each."""
    stream = array("q")
    for start in range(0, len(documents), ENCODED_AT_ONCE):
        for ids in tokenizer(list(documents[start : start + ENCODED_AT_ONCE]), verbose=False)["input_ids"]:
            starts = bool(ids) and ids[0] == tokenizer.bos_token_id
            end = [] if starts or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            stream.extend([*ids, *end])
    return stream


def spread(blocks: Tensor, count: int | None) -> Tensor:
    """At most ``count`` evenly spaced blocks of ``blocks`` ``[N, S]`` (None: all)."""
    if count is None or count >= len(blocks):
        return blocks
    return blocks[torch.linspace(0, len(blocks) - 1, count).long()]


@torch.no_grad()
def evaluate(
    model: PreTrainedModel, blocks: Tensor, batch_size: int = 16, progress: Progress | None = None, title: str = ""
) -> Evaluation:
    """Loss of ``model`` on ``blocks`` ``[N, S]``: every token but the first of a block is predicted once.

    Of several processes (`fas.world`) each runs its share of the batches, which are those of one process; all know the result.
    """
    progress = progress or Silent()
    training = model.training
    model.eval()
    batches = blocks.split(batch_size)
    mine = range(len(batches))[world.share(len(batches))]
    losses = torch.zeros(len(batches), dtype=torch.float64)
    progress.start(title or "evaluating", sum(len(batches[number]) for number in mine))
    for number in mine:
        ids = batches[number].to(model.device)
        losses[number] = model(input_ids=ids, labels=ids, use_cache=False).loss.item() * len(ids)
        progress.advance(len(ids))
    model.train(training)
    loss = sum(world.summed(losses).tolist()) / len(blocks)
    progress.done(f"loss {loss:.4f}")
    return Evaluation(loss, blocks.numel() - len(blocks))


def evaluate_spiking(
    model: PreTrainedModel, blocks: Tensor, batch_size: int = 16, progress: Progress | None = None, title: str = ""
) -> Evaluation:
    """`evaluate`, with the spikes of all sites counted. The batch is divided by T, so that memory is that of one batch."""
    return Blocks(blocks).evaluate_spiking(model, batch_size, progress, title)


@dataclass(frozen=True)
class Blocks(Examples):
    """Blocks of tokens ``[N, S]`` of causal language modelling: every token but the first of a block is predicted."""

    tokens: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}

    def picked(self, numbers: Sequence[int]) -> Self:
        return replace(self, tokens=self.tokens[list(numbers)])

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}

    def unpadded(self, size: int) -> list[dict[str, Tensor]]:
        return [{"input_ids": batch} for batch in self.tokens.split(size)]

    def evaluate(
        self, model: PreTrainedModel, batch_size: int, progress: Progress | None = None, title: str = ""
    ) -> Evaluation:
        return evaluate(model, self.tokens, batch_size, progress, title)

    def digest(self) -> bytes:
        return self.tokens.numpy().tobytes()

    def about(self) -> dict[str, Any]:
        return {"length": self.tokens.shape[1], "sequences": len(self)}
