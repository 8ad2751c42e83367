"""A tiny model with a real tokenizer, saved as a user would have it."""

from __future__ import annotations

from pathlib import Path

import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(tiny.VOCAB - 3)]


def save_ann(folder: Path, family: str = "gpt2", **settings: object) -> str:
    """Model and tokenizer of `tiny.ann` in ``folder``."""
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<pad>")
    fast.save_pretrained(folder)
    tiny.ann(family, **settings).save_pretrained(folder)
    return str(folder)


def save_text(path: Path, documents: int = 60) -> str:
    """Documents with a pattern that can be learned: each counts up from a word of its own."""
    texts = [" ".join(WORDS[(7 * d + i) % 40] for i in range(25)) for d in range(documents)]
    path.write_text("\n\n".join(texts))
    return str(path)
