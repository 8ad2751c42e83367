"""A tiny model with a real tokenizer, saved as a user would have it."""

from __future__ import annotations

import random
from pathlib import Path

import tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(tiny.VOCAB - 3)]


def save_ann(folder: Path, family: str = "gpt2", **settings: object) -> str:
    """Model and tokenizer of `tiny.ann` in ``folder``."""
    save_tokenizer(folder)
    tiny.ann(family, **settings).save_pretrained(folder)
    return str(folder)


def save_tokenizer(folder: Path) -> None:
    """One token a word."""
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<pad>")
    fast.save_pretrained(folder)


def save_encoder(folder: Path, family: str = "bert_base", **settings: object) -> str:
    """An encoder and a tokenizer that puts [CLS] and [SEP] around texts and pairs; ``bert_base`` has no head."""
    special = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS[: tiny.VOCAB - 5]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    named = dict(zip(("cls_token", "sep_token", "pad_token", "unk_token", "mask_token"), special, strict=True))
    BertTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    if family == "bert_base":
        model = tiny.ann("bert_sequence", **settings).bert
        model.config.num_labels = 2
    else:
        model = tiny.ann(family, **settings)
    model.save_pretrained(folder)
    return str(folder)


def save_labelled(path: Path, rows: int = 200, pairs: bool = False) -> str:
    """Texts of two kinds of words, which say the label; as pairs, the label says whether both are of one kind."""
    drawn = random.Random(0)
    lines = ["sentence1\tsentence2\tlabel" if pairs else "sentence\tlabel"]
    for _ in range(rows):
        kinds = [drawn.randrange(2) for _ in range(1 + pairs)]
        texts = [" ".join(drawn.choices(WORDS[40 * kind : 40 * kind + 40], k=drawn.randint(3, 9))) for kind in kinds]
        lines.append("\t".join([*texts, str(int(kinds[0] == kinds[-1]) if pairs else kinds[0])]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def save_text(path: Path, documents: int = 60) -> str:
    """Documents with a pattern that can be learned: each counts up from a word of its own."""
    texts = [" ".join(WORDS[(7 * d + i) % 40] for i in range(25)) for d in range(documents)]
    path.write_text("\n\n".join(texts))
    return str(path)
