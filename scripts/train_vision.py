"""Train a small LLaVA on images with questions, or a BLIP on images with captions: ``python scripts/train_vision.py DATA OUT``.

DATA: a folder as `fas.tasks.visual.load_visual` reads it, of which only the training part is learnt from; or ``shapes``:
pictures that are drawn now (`fas.tasks.shapes`). Everything starts at random; the tokenizer's words are those of the training
part. Images keep their size (``--image-size``, square).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Sequence, Split, Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fas.cli.show import Lines
from fas.pipeline.load import pick_device
from fas.tasks.glue import CAPTIONING, VQA
from fas.tasks.pictures import Pictures
from fas.tasks.shapes import write_shapes
from fas.tasks.vision_language import ImageTexts, first_token
from fas.tasks.visual import Seen, VisualData, load_visual
from fas.training import Stage1Options, fine_tune

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
IMAGE = "<image>"
PICTURES = 8000
BEGIN = "[DEC]"
"""What BLIP's `generate` begins a caption with."""


def tokenizer_of(rows: list[Seen]) -> PreTrainedTokenizerFast:
    """Words and marks of ``rows``; each text begins with ``<s>``."""
    cutter = Sequence([Split(IMAGE, "isolated"), Whitespace()])
    words = {
        word for row in rows for text in (row.question, row.answer) for word, _ in cutter.pre_tokenize_str(text.lower())
    }
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), IMAGE, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **SPECIAL,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_max_length=256,
    )


def processor_of(rows: list[Seen], size: int, patch: int) -> LlavaProcessor:
    """CLIP's image processor without cropping, and the tokenizer of ``rows``."""
    images = CLIPImageProcessor(
        size={"height": size, "width": size}, do_center_crop=False, crop_size={"height": size, "width": size},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return LlavaProcessor(
        images, tokenizer_of(rows), patch_size=patch, vision_feature_select_strategy="default", image_token=IMAGE,
        num_additional_image_tokens=1,
    )  # fmt: skip


def untrained(
    processor: LlavaProcessor, size: int, patch: int, width: int, layers: int
) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights, whose tower is read at its last layer but one."""
    tokenizer: Any = processor.tokenizer  # type: ignore[attr-defined]
    shape = {"hidden_size": width, "num_attention_heads": max(1, width // 32), "intermediate_size": 4 * width}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    vision = shape | {
        "model_type": "clip_vision_model", "image_size": size, "patch_size": patch, "num_hidden_layers": layers + 1,
    }  # fmt: skip
    text = shape | special | {
        "model_type": "llama", "num_hidden_layers": layers, "vocab_size": len(tokenizer), "max_position_embeddings": 256,
        "intermediate_size": 8 * width // 3, "tie_word_embeddings": False,
    }  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(size // patch) ** 2, vision_feature_layer=-2, **special,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def captioning_processor(rows: list[Seen], size: int, patch: int) -> BlipProcessor:
    """BLIP's, with a BERT tokenizer of the words of ``rows``."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", BEGIN)
    words = sorted({word for row in rows for word in row.answer.lower().split()})
    vocabulary = {word: number for number, word in enumerate((*special, *words))}
    names = ["input_ids", "attention_mask"]
    tokenizer = BertTokenizerFast(vocab=vocabulary, additional_special_tokens=[BEGIN], model_input_names=names)
    images = BlipImageProcessor(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )  # fmt: skip
    return BlipProcessor(images, tokenizer)


def untrained_captioner(
    processor: BlipProcessor, size: int, patch: int, width: int, layers: int
) -> BlipForConditionalGeneration:
    """A BLIP with random weights."""
    tokenizer: Any = processor.tokenizer  # type: ignore[attr-defined]
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": max(1, width // 32)}
    shape |= {"intermediate_size": 4 * width}
    text = shape | {
        "encoder_hidden_size": width, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_dim": width,
        "bos_token_id": tokenizer.convert_tokens_to_ids(BEGIN), "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = shape | {"image_size": size, "patch_size": patch}
    return BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config=text, projection_dim=width))


ARCHITECTURES: dict[str, tuple[str, Any, Any]] = {
    "llava": (VQA, processor_of, untrained),
    "blip": (CAPTIONING, captioning_processor, untrained_captioner),
}
"""Task, processor and model."""


def mirrored(rows: Iterable[Seen], folder: Path) -> list[Seen]:
    """``rows`` once more, with their images' left and right changed; the images are written to ``folder``."""
    from PIL import Image, ImageOps

    made: dict[Path, Path] = {}
    for image in {row.image for row in rows}:
        made[image] = folder / f"{len(made)}.png"
        with Image.open(image) as opened:
            ImageOps.mirror(opened.convert("RGB")).save(made[image])
    return [replace(row, image=made[row.image]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="llava")
    parser.add_argument("--start", help="folder of a model that this script made, to go on from")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--mirror", action="store_true", help="learn also from mirrored images: not where left matters")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    task = ARCHITECTURES[args.architecture][0]
    with TemporaryDirectory() as made:
        place = args.data
        if place == "shapes":
            drawn = write_shapes(Path(made), PICTURES, seed=args.seed, side=args.image_size)
            place = str(drawn / "captions" if task == CAPTIONING else drawn)
        found = load_visual(task, place)
        if args.mirror:
            (folder := Path(made) / "mirrored").mkdir()
            found = replace(found, training=found.training + mirrored(found.training, folder))
        train(args, found)


def train(args: argparse.Namespace, found: VisualData) -> None:
    """Learn ``found`` and write model and processor."""
    progress, device = Lines(sys.stderr), pick_device(args.device)
    _, processor_for, model_for = ARCHITECTURES[args.architecture]
    model: PreTrainedModel
    if args.start:
        processor = AutoProcessor.from_pretrained(args.start)
        model = AutoModelForImageTextToText.from_pretrained(args.start).to(device)
    else:
        processor = processor_for(found.training, args.image_size, args.patch)
        torch.manual_seed(args.seed)
        model = model_for(processor, args.image_size, args.patch, args.width, args.layers).to(device)
    progress.note(f"{model.num_parameters():,} parameters, {len(found.training):,} texts")
    options = Stage1Options(steps=args.steps, batch_size=args.batch_size, lr=args.lr, weight_decay=0.01, seed=args.seed)
    begin = first_token(model.config)
    fine_tune(model, ImageTexts(found.training, Pictures(processor), begin), options, None, progress, "training")
    ImageTexts(found.held_out, Pictures(processor), begin).evaluate(model, 64, progress, "held-out texts")
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
