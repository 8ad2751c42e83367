"""A tiny model and tiny data for a recipe: the architecture that it names, with all that is not a size as it stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folders
import tiny
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from fas.pipeline.recipes import Recipe
from fas.tasks.builtin import model_path
from fas.tasks.glue import GLUE, LANGUAGE_MODELING

_BLOCK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
_GATED = {"intermediate_size": 64, "num_key_value_heads": 4}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bert": _BLOCK | {"intermediate_size": 48},
    "opt": _BLOCK | {"ffn_dim": 48},
    "llama": _BLOCK | _GATED,
    "qwen2": _BLOCK | _GATED,
}
SHORT: dict[str, Any] = {
    "stage1_steps": 2, "batch_size": 2, "length": 16, "calibration_sequences": 4, "eval_sequences": 4, "fit_steps": 2,
}  # fmt: skip


def _bytes() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


def architecture_of(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says of its model, with tiny sizes in the same proportions of what may differ."""
    said = dict(recipe.architecture)
    small = dict(SIZES[said["model_type"]])
    if said["model_type"] == "opt":
        small["word_embed_proj_dim"] = 32 if said["word_embed_proj_dim"] == said["hidden_size"] else 16
    if said.get("num_key_value_heads"):
        small["num_key_value_heads"] = 2
    vocabulary = len(_bytes()) if said["model_type"] == "qwen2" else tiny.VOCAB
    special = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return said | small | special


def options_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe's options without names and with few steps."""
    named = ("model", "data", "eval_data")
    options = {name: value for name, value in recipe.options.items() if name not in named} | SHORT
    if options.get("stage1") == "none":
        del options["stage1_steps"], options["batch_size"]
    return options


def save_model(recipe: Recipe, folder: Path) -> str:
    """Model and tokenizer."""
    torch.manual_seed(0)
    settings = architecture_of(recipe)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    if config.model_type == "qwen2":  # of which transformers makes a tokenizer of bytes, whatever lies there
        _bytes().save_pretrained(folder)
    else:
        folders.save_tokenizer(folder)
    getattr(transformers, config.architectures[0])(config).save_pretrained(folder)
    return str(folder)


def save_data(recipe: Recipe, path: Path) -> str:
    """Text, or a table with the columns and labels of the recipe's task."""
    task = GLUE.get(recipe.options.get("task", LANGUAGE_MODELING))
    if task is None:
        return folders.save_text(path.with_suffix(".txt"), 20)
    layout = task.layouts[0]
    rows = [[str(place) for place in layout.places]]
    for number in range(40):
        texts = [" ".join(folders.WORDS[(number + i) % 40] for i in range(3 + number % 4))]
        texts += [" ".join(folders.WORDS[(3 * number + i) % 40] for i in range(4))] * (layout.pair is not None)
        rows.append([*texts, f"{number % 6 / 2}" if task.regression else task.labels[number % len(task.labels)]])
    path = path.with_suffix(".tsv")
    path.write_text("\n".join("\t".join(row) for row in rows))
    return str(path)
