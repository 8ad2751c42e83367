"""Masked language modelling on general text: what an encoder's Stage 1 may begin with (the paper's BERT recipe)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

MASKED_SHARE = 0.15


@dataclass(frozen=True)
class MaskedBlocks:
    """Blocks of tokens ``[N, S]``, `MASKED_SHARE` of them hidden, the same ones for the same seed; a training set."""

    tokens: Tensor
    tokenizer: PreTrainedTokenizerBase
    seed: int
    collator: DataCollatorForLanguageModeling = field(init=False)

    def __post_init__(self) -> None:
        made = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=MASKED_SHARE, seed=self.seed)
        object.__setattr__(self, "collator", made)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index]}

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Hidden tokens, and ``labels`` that are −100 elsewhere."""
        return dict(self.collator(list(examples)))

    def lengths(self) -> None:
        """All alike."""
