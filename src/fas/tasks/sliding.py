"""Perplexity by a sliding window: a token, a word and a byte at a time.

Each token is predicted once, with at least ``length − stride`` tokens in front of it wherever the text has them (the
sliding-window evaluation of Hugging Face's documentation, "Perplexity of fixed-length models").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fas import world
from fas.errors import ConfigError, DataError
from fas.progress import Progress, Silent
from fas.tasks.examples import Evaluation, Scored
from fas.tasks.language_modeling import stream_of


@dataclass(frozen=True)
class SlidingText(Scored):
    """A stream of tokens ``[N]`` under a window of ``length`` that moves by ``stride``."""

    tokens: Tensor
    length: int
    stride: int
    words: int
    """Of the text, by white space."""
    bytes: int
    """Of the text in UTF-8."""
    documents: int

    def evaluate(
        self, model: PreTrainedModel, batch_size: int, progress: Progress | None = None, title: str = ""
    ) -> Evaluation:
        """Nats of all tokens but the first, by token, word and byte (in bits): ``perplexity``, ``word_perplexity`` and
        ``bits_per_byte``. Separators of documents are predicted too, and are no words or bytes."""
        progress = progress or Silent()
        training, batches = model.training, list(self.batches(batch_size))
        mine = range(len(batches))[world.share(len(batches))]
        nats_of, predicted_of = torch.zeros(2, len(batches), dtype=torch.float64)
        model.eval()
        progress.start(title or "evaluating", sum(len(batches[number][0]) for number in mine))
        with torch.no_grad():
            for number in mine:
                ids, labels = batches[number]
                logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1]
                wanted = labels[:, 1:].to(logits.device)
                lowest = torch.promote_types(logits.dtype, torch.float32)
                nats_of[number] = float(
                    F.cross_entropy(logits.flatten(0, 1).to(lowest), wanted.flatten(), reduction="sum")
                )
                predicted_of[number] = int((wanted != IGNORED).sum())
                progress.advance(len(ids))
        nats, predicted = sum(world.summed(nats_of).tolist()), int(world.summed(predicted_of).sum())
        model.train(training)
        loss = nats / predicted
        progress.done(f"loss {loss:.4f}")
        metrics = {
            "perplexity": math.exp(min(loss, 700.0)),
            "word_perplexity": math.exp(min(nats / self.words, 700.0)),
            "bits_per_byte": nats / self.bytes / math.log(2),
        }
        return Evaluation(loss, predicted, metrics=metrics, items=self.documents)

    def windows(self) -> Iterator[tuple[int, int, int]]:
        """``(begin, end, first)``: tokens of a window, and the first of them that no window before has predicted."""
        begin, done = 0, 1
        while done < len(self.tokens):
            end = min(begin + self.length, len(self.tokens))
            yield begin, end, done
            begin, done = begin + self.stride, end

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens and labels ``[B, S]`` (`IGNORED` where a token is context) of windows of equal length."""
        ids: list[Tensor] = []
        labels: list[Tensor] = []
        for begin, end, first in self.windows():
            if ids and (len(ids) == size or len(ids[0]) != end - begin):
                yield torch.stack(ids), torch.stack(labels)
                ids, labels = [], []
            window = self.tokens[begin:end]
            ids.append(window)
            labels.append(torch.where(torch.arange(begin, end) < first, IGNORED, window))
        yield torch.stack(ids), torch.stack(labels)

    def about(self) -> dict[str, int]:
        """What it is, for the record."""
        return {name: getattr(self, name) for name in ("length", "stride", "documents", "words", "bytes")}


IGNORED = -100
"""Label of a token that is context only (torch's)."""


def sliding_text(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    length: int,
    stride: int,
    count: int | None = None,
) -> SlidingText:
    """At most ``count`` evenly spaced ``documents`` (None: all) as one stream.

    The stream begins with what separates documents, so that their first token is predicted too. Raises `ConfigError` for a
    stride that leaves tokens without context or moves nowhere, `DataError` for a text without tokens.
    """
    if not 1 <= stride < length:
        raise ConfigError(
            f"stride={stride} is not from 1 to {length - 1}; a window of {length} tokens moves by less than its length, so "
            "that each token has some in front of it"
        )
    if count is not None and count < len(documents):
        documents = [documents[i] for i in torch.linspace(0, len(documents) - 1, count).long().tolist()]
    stream = stream_of(tokenizer, documents)
    separator = tokenizer.eos_token_id
    if stream and stream[0] != tokenizer.bos_token_id and separator is not None:
        stream = [separator, *stream]
    words, size = (
        sum(len(part) for part in parts) for parts in (map(str.split, documents), map(str.encode, documents))
    )
    if len(stream) < 2 or not words:
        raise DataError(f"the evaluation text has {len(stream)} tokens; give more text")
    return SlidingText(torch.tensor(stream), length, stride, words, size, len(documents))
