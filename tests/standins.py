"""A tiny model and tiny data for a recipe: the architecture that it names, with all that is not a size as it stands there."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import folders
import shapes
import tiny
import torch
import transformers
from PIL import Image
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPTokenizer,
    GitProcessor,
    PreTrainedTokenizerBase,
    ViTImageProcessor,
)

from fas.pipeline.recipes import Recipe
from fas.tasks.builtin import model_path
from fas.tasks.glue import CAPTIONING, GLUE, LANGUAGE_MODELING, VISUAL, VQA
from fas.tasks.visual import Seen

_BLOCK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
_SIGHT = {"image_size": 16, "patch_size": 8}
_GATED = {"intermediate_size": 64, "num_key_value_heads": 4}
_EYE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4} | _SIGHT
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bert": _BLOCK | {"intermediate_size": 48},
    "opt": _BLOCK | {"ffn_dim": 48},
    "llama": _BLOCK | _GATED,
    "qwen2": _BLOCK | _GATED,
    "git": _BLOCK | {"intermediate_size": 48, "vision_config": _EYE},
    "blip": {
        "projection_dim": 16, "vision_config": _EYE,
        "text_config": _BLOCK | {"intermediate_size": 48, "encoder_hidden_size": 32, "projection_dim": 16},
    },
    "llava": {"image_seq_length": 4, "text_config": _BLOCK | _GATED, "vision_config": _EYE | {"num_hidden_layers": 3}},
    "vit": _EYE,
    "clip": {"projection_dim": 16, "text_config": _BLOCK | {"intermediate_size": 48}, "vision_config": _EYE},
}  # fmt: skip
QUESTION = "what color is it?"
SHORT: dict[str, Any] = {
    "stage1_steps": 2, "batch_size": 2, "length": 16, "calibration_sequences": 4, "eval_sequences": 4, "fit_steps": 2,
}  # fmt: skip


def _bytes() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


@cache
def _processor(kind: str) -> Any:
    """What encodes images, and texts of the words of `_save_pictures`, for a model of that type."""
    size, made = {"height": 16, "width": 16}, shapes.script()
    rows = [Seen(Path(), QUESTION, f"a {colour} picture") for colour in shapes.COLOURS]
    if kind == "vit":
        return ViTImageProcessor(size=size)
    if kind == "llava":
        return made.processor_of(rows, 16, 8)
    images = CLIPImageProcessor(size=size, do_center_crop=False)
    if kind == "clip":
        return CLIPProcessor(images, _letters())
    captions = made.captioning_processor(rows, 16, 8)
    return captions if kind == "blip" else GitProcessor(images, captions.tokenizer)


def _letters() -> CLIPTokenizer:
    """CLIP's tokenizer, each letter a token."""
    letters = [*map(chr, range(97, 123)), "."]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as place:
        vocabulary, merges = Path(place) / "vocab.json", Path(place) / "merges.txt"
        vocabulary.write_text(json.dumps({word: number for number, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=64)


def _seeing(kind: str) -> dict[str, Any]:
    """Tiny sizes of a model that sees, and the tokens of its tokenizer."""
    tokenizer: Any = getattr(_processor(kind), "tokenizer", None)
    if tokenizer is None:
        return SIZES[kind]
    end = tokenizer.sep_token_id if kind in ("git", "blip") else tokenizer.eos_token_id
    begin = {"git": tokenizer.cls_token_id, "blip": tokenizer.convert_tokens_to_ids("[DEC]")}.get(
        kind, tokenizer.bos_token_id
    )
    special = {
        "vocab_size": len(tokenizer),
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
    }
    special |= {"sep_token_id": end} if kind == "blip" else {}
    if kind == "git":
        return SIZES[kind] | special
    image = {"image_token_index": tokenizer.convert_tokens_to_ids("<image>")} if kind == "llava" else {}
    return SIZES[kind] | image | {"text_config": SIZES[kind]["text_config"] | special}


def architecture_of(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says of its model, with tiny sizes in the same proportions of what may differ."""
    said = dict(recipe.architecture)
    if recipe.options.get("task") in VISUAL:
        small = _seeing(said["model_type"])
        return said | {name: said[name] | value if isinstance(value, dict) else value for name, value in small.items()}
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
    if options.get("task") in VISUAL:
        del options["length"]
    if options.get("stage1") == "none":
        del options["stage1_steps"], options["batch_size"]
    return options


def save_model(recipe: Recipe, folder: Path) -> str:
    """Model and tokenizer, or what else encodes its inputs."""
    torch.manual_seed(0)
    settings = architecture_of(recipe)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    if recipe.options.get("task") in VISUAL:
        _processor(config.model_type).save_pretrained(folder)
    elif config.model_type == "qwen2":  # of which transformers makes a tokenizer of bytes, whatever lies there
        _bytes().save_pretrained(folder)
    else:
        folders.save_tokenizer(folder)
    getattr(transformers, config.architectures[0])(config).save_pretrained(folder)
    return str(folder)


def save_data(recipe: Recipe, path: Path) -> str:
    """Text, or a table with the columns and labels of the recipe's task, or of images."""
    if recipe.options.get("task") in VISUAL:
        return _save_pictures(recipe.options["task"], path)
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


def _save_pictures(task: str, folder: Path) -> str:
    """Two parts of coloured squares, each with its question and answer, its caption, or its class."""
    for part, count in (("train", 24), ("test", 6)):
        (folder / part).mkdir(parents=True)
        rows = []
        for number in range(count):
            colour = list(shapes.COLOURS)[number % 3]
            tint = tuple(min(255, value + number) for value in shapes.COLOURS[colour])
            Image.new("RGB", (16, 16), tint).save(folder / part / f"{number}.png")
            told = {VQA: {"question": QUESTION, "answer": colour}, CAPTIONING: {"caption": f"a {colour} picture"}}
            rows.append({"image": f"{number}.png"} | told.get(task, {"label": colour}))
        (folder / part / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)
