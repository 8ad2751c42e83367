"""Batches of images for a dry run: what a conversion of a model that sees has in its hands at once, by its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from fas.errors import ConfigError, FasError
from fas.losses import logits_of
from fas.pipeline.forwards import Architecture, Shape
from fas.pipeline.load import auto_class_of
from fas.pipeline.options import ConvertOptions
from fas.pipeline.source_images import SEEING
from fas.runtime.control import without_cache
from fas.tasks.glue import CAPTIONING, CLASSIFIED, IMAGE_CLASSIFICATION, ZERO_SHOT_IMAGES
from fas.tasks.image_classification import SIGLIP_LENGTH, class_names_of
from fas.tasks.reading.journal import Reading
from fas.tasks.visual import load_visual

TEXT, PROMPT = 32, 16
"""Tokens that a question with its answer, or a caption, is taken to have, and the text of a class."""
IMAGE_TOKENS = {"blip": None, "blip-2": "num_query_tokens", "git": None, "llava": "image_seq_length"}
"""Image-text-to-text models of which shapes are enough, by the setting that says how many tokens of the text stand for an
image."""


@dataclass(frozen=True)
class ImageShape(Shape):
    """A batch of images ``[batch, *pixels]``: each with its ``text``, with the number of its class (no text), or beside the
    texts of all ``classes``, ``[classes, text]``. An image counts as so many tokens as it has patches."""

    pixels: tuple[int, ...] = ()
    text: int = 0
    classes: int = 0
    masked: bool = True
    """Whether the model is told what is padding."""
    writes: bool = False
    """Whether an evaluation also lets the model write."""

    @property
    def tokens(self) -> int:
        return self.batch * self.length + self.classes * self.text

    def inputs(self, labels: bool = True) -> dict[str, Tensor]:
        found = {"pixel_values": torch.zeros(self.batch, *self.pixels)}
        wanted = torch.zeros(self.batch, dtype=torch.long)
        if self.text:
            ids = torch.zeros(self.classes or self.batch, self.text, dtype=torch.long)
            found |= {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if self.masked else {})
            wanted = wanted if self.classes else ids
        return found | ({"classes" if self.classes else "labels": wanted} if labels else {})

    def judged(self, model: PreTrainedModel, scored: bool = True) -> Callable[[], Any]:
        """As the tasks do, which compute the loss by themselves; a text that is written takes a cache of all its tokens."""
        inputs, cacheless = self.inputs(labels=False), without_cache(model)
        wanted = self.inputs()["classes" if self.classes else "labels"]
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

        def run() -> Any:
            if not scored:
                return model(**inputs, **cacheless)
            loss = _loss(logits_of(model(**inputs, **cacheless)), wanted)
            if self.writes:
                model(**inputs, **last, use_cache=True)
            return loss

        return run


def _loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Of classes ``[B, C]`` or of the texts' tokens, which stand last ``[B, …, V]``."""
    if logits.ndim == 2:
        return F.cross_entropy(logits.float(), wanted)
    found = logits[:, -wanted.shape[1] :][:, :-1].float()
    return F.cross_entropy(found.transpose(1, 2), wanted[:, 1:])


def image_shape(config: PreTrainedConfig, model: str, task: str, classes: int, writes: bool) -> ImageShape:
    """One example of ``task`` for a ``model`` of ``config``; ``classes`` are those of the data, if it has any.

    Raises `ConfigError` where shapes alone do not say what a pass does.
    """
    vision = getattr(config, "vision_config", config)
    size, patch = (_pair(getattr(vision, name, None)) for name in ("image_size", "patch_size"))
    if size is None or patch is None or (task not in CLASSIFIED and config.model_type not in IMAGE_TOKENS):
        kind = ", ".join(config.architectures or [config.model_type])
        raise ConfigError(
            f"a dry run cannot follow {kind} ({model}): how many tokens an image has there depends on the image itself; "
            f"convert it without --dry-run"
        )
    positions = (size[0] // patch[0]) * (size[1] // patch[1]) + 1
    pixels = (getattr(vision, "num_channels", 3), *size)
    if task in CLASSIFIED:
        siglip = "siglip" in config.model_type
        prompt = (SIGLIP_LENGTH if siglip else PROMPT) if task == ZERO_SHOT_IMAGES else 0
        return ImageShape(1, positions, pixels=pixels, text=prompt, classes=classes if prompt else 0, masked=not siglip)
    setting = IMAGE_TOKENS[config.model_type]
    pieces = getattr(config, setting) if setting else 0
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or pieces + TEXT
    words = min(TEXT, context - pieces)
    return ImageShape(1, positions + words, pixels=pixels, text=pieces + words, writes=writes)


def described(shape: ImageShape) -> str:
    """What an example was taken to be, for people.

    >>> described(ImageShape(1, 229, pixels=(3, 224, 224), text=32))
    'every image is taken to have 224 × 224 pixels, and 229 tokens with its text'
    >>> described(ImageShape(1, 50, pixels=(3, 224, 224), text=16, classes=10))
    'every image is taken to have 224 × 224 pixels, and each of 10 classes a text of 16 tokens'
    """
    height, width = shape.pixels[1:]
    size = f"every image is taken to have {width} × {height} pixels"
    if shape.classes:
        return f"{size}, and each of {shape.classes} classes a text of {shape.text} tokens"
    return f"{size}, and {shape.length} tokens with its text" if shape.text else size


@dataclass(frozen=True)
class Amount:
    """How many images there are, by use."""

    training: int
    held_out: int
    evaluation: int
    classes: int = 0
    writes: bool = True
    """Whether the model also writes where it is measured: captions, and where people gave several answers."""


def counted(options: ConvertOptions, reading: Reading) -> Amount:
    """Of data that lies here, which ``reading`` is told of; raises `DataError` where it cannot be read."""
    rows = load_visual(options.task, options.data, options.eval_data, reading)
    classes = len(class_names_of(rows.training, options.data)) if options.task in CLASSIFIED else 0
    writes = options.task == CAPTIONING or any(row.references for row in rows.evaluation)
    return Amount(len(rows.training), len(rows.held_out), len(rows.evaluation), classes, writes)


def seeing(options: ConvertOptions, config: PreTrainedConfig, classes: int) -> tuple[Architecture, bool]:
    """The model for ``options`` and data of so many ``classes``, and whether its head is new, as a conversion loads it; a new
    head is written into ``config``. Raises `FasError` for a model that does not do the task."""
    wanted, stored = SEEING[options.task], auto_class_of(config)
    if options.task == IMAGE_CLASSIFICATION:
        if type(config) not in wanted._model_mapping:
            raise FasError(
                f"{options.model} cannot classify images: its architectures are {config.architectures or []}"
            )
        new_head = stored is not wanted or config.num_labels != classes
        if new_head:
            config.num_labels, config.problem_type = classes, "single_label_classification"
        return Architecture(config, wanted), new_head
    if stored is not wanted:
        kind = "compares images with texts" if options.task == ZERO_SHOT_IMAGES else "answers or captions images"
        raise FasError(f"{options.model} is no model that {kind}: its architectures are {config.architectures or []}")
    return Architecture(config, wanted), False


def _pair(size: Any) -> tuple[int, int] | None:
    """Height and width of what is square, or has two sides."""
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[-1])
