"""lm-evaluation-harness on a loaded model in any of its forms: its `HFLM`, without padding, with everything counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fas.errors import FasError, with_extra
from fas.progress import Progress, Silent

try:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as missing:
    raise FasError(
        f"zero-shot tasks are measured by lm-evaluation-harness, which is not there ({missing}); {with_extra('eval')}"
    ) from None

GENERATED = 256
"""At most so many new tokens where a task does not say, as in lm-eval; half of a context that is shorter than twice that."""

Pair = tuple[Any, list[int], list[int]]
"""What to remember a request by, the tokens of its context, and those of its continuation."""


class HarnessLM(HFLM):
    """``model`` as an lm-eval model; it may be prepared or converted, in whatever time its clock says.

    Only requests of equal length share a batch, so nothing is padded: spikes are counted on real tokens alone, and neither
    results nor spikes depend on who shares a batch. What does not fit into the context (``length``, or the model's) is cut
    at its left, as in lm-eval; ``truncated`` says of which items, each as (task, number). ``tokens`` and ``nats`` count what
    was scored. Raises `FasError` for a model that does not continue text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 16,
        length: int | None = None,
        progress: Progress | None = None,
        title: str = "",
    ) -> None:
        if not model.can_generate() or model.config.is_encoder_decoder:
            raise FasError(
                f"{type(model).__name__} is no causal language model, and zero-shot tasks ask how likely a text goes on"
            )
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,  # type: ignore[bad-argument-type]
            backend="causal",
            batch_size=batch_size,
            max_length=length,
            softmax_dtype=torch.promote_types(model.dtype, torch.float32),
        )
        self.progress, self.title = progress or Silent(), title
        self.truncated: set[tuple[str | None, int | None]] = set()
        self.tokens, self.nats = 0, 0.0

    @property
    def max_gen_toks(self) -> int:
        return min(GENERATED, self.max_length // 2)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        self.progress.start(self.title, len(requests))
        found = super().loglikelihood(requests, disable_tqdm=True)
        self.progress.done()
        self._note_truncated(requests, self._cut)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        self.progress.start(self.title)
        found = super().loglikelihood_rolling(requests, disable_tqdm=True)
        self.progress.done()
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        lengths = [len(self.tok_encode(request.args[0])) for request in requests]
        rooms = [self.max_length - self._asked_of(request) for request in requests]
        self._note_truncated(requests, [length > room for length, room in zip(lengths, rooms, strict=True)])
        found: list[str] = [""] * len(requests)
        self.progress.start(self.title, len(requests))
        for numbers in _alike(lengths):
            texts = super().generate_until([requests[i] for i in numbers], disable_tqdm=True)
            for i, text in zip(numbers, texts, strict=True):
                found[i] = text
            self.progress.advance(len(numbers))
        self.progress.done()
        return found

    def _asked_of(self, request: Instance) -> int:
        _, asked = request.args  # type: ignore[bad-unpacking]
        return normalize_gen_kwargs(asked, self.max_gen_toks)["max_gen_toks"]

    def _loglikelihood_tokens(
        self, requests: list[Pair], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        fitting = [self._fitting(*request) for request in requests]
        lengths = [len(context) + len(continuation) for _, context, continuation in fitting]
        self._cut = [
            len(context) + len(continuation) > length
            for (_, context, continuation), length in zip(requests, lengths, strict=True)
        ]
        found = [(0.0, False)] * len(requests)
        for numbers in _alike(lengths):
            scores = super()._loglikelihood_tokens([fitting[i] for i in numbers], disable_tqdm=True)
            for i, score in zip(numbers, scores, strict=True):
                found[i] = score
                self.nats -= score[0]
                self.tokens += len(fitting[i][2])
            self.progress.advance(len(numbers))
        return found

    def _fitting(self, name: Any, context: list[int], continuation: list[int]) -> Pair:
        """The end of both that fits: the last token is only predicted, and at least one stands before what is."""
        kept = (context + continuation)[-(self.max_length + 1) :]
        predicted = min(len(continuation), len(kept) - 1)
        return name, kept[: len(kept) - predicted], kept[len(kept) - predicted :]

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return self.model(input_ids=inps, use_cache=False).logits

    def _note_truncated(self, requests: Iterable[Instance], cut: Iterable[bool]) -> None:
        self.truncated |= {
            (request.task_name, request.doc_id) for request, is_cut in zip(requests, cut, strict=True) if is_cut
        }


def _alike(lengths: list[int]) -> list[list[int]]:
    """The numbers of those of equal length, longest first, so that memory runs out at once or never."""
    groups: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths):
        groups[length].append(number)
    return [groups[length] for length in sorted(groups, reverse=True)]
