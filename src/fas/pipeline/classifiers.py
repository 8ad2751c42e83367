"""Loads models with a head for a user's classes, of texts and of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fas.errors import CheckpointError, FasError
from fas.pipeline.load import auto_class_of, loaded_with, need_pillow, original_config


@dataclass(frozen=True)
class Head:
    """What is told apart: names of classes, or None for one real value."""

    names: tuple[str, ...] | None

    @property
    def size(self) -> int:
        """Numbers that the head gives."""
        return 1 if self.names is None else len(self.names)

    def settings(self) -> dict[str, Any]:
        """What transformers is told about it."""
        if self.names is None:
            return {"num_labels": 1, "problem_type": "regression"}
        by_number = dict(enumerate(self.names))
        return {
            "num_labels": self.size, "problem_type": "single_label_classification", "id2label": by_number,
            "label2id": {name: number for number, name in by_number.items()},
        }  # fmt: skip


def load_image_classifier(model: str, head: Head, device: str = "auto") -> tuple[PreTrainedModel, Any, bool]:
    """The original model with a head for ``head``'s classes, its image processor, and whether the head is new (random, by the
    seed of `torch`): where the model has one for other classes, as one that was trained on ImageNet, it gets a new one.
    Raises `FasError` for a missing folder, or a model that cannot classify images."""
    config = original_config(model)
    need_pillow()
    cls = AutoModelForImageClassification
    if type(config) not in cls._model_mapping:
        raise FasError(f"{model} cannot classify images: its architectures are {config.architectures or []}")
    has_head = auto_class_of(config) is cls and config.num_labels == head.size
    more: dict[str, Any] = {} if has_head else head.settings() | {"ignore_mismatched_sizes": True}
    loaded, processor, missing = loaded_with(model, device, "float32", cls, more)
    lacking = [name for name in missing if "classifier" not in name]
    if lacking or (has_head and missing):
        raise CheckpointError(f"{model} lacks {len(missing)} weights, first {min(lacking or missing)}")
    return loaded, processor, not has_head


def load_classifier(
    model: str, head: Head, device: str = "auto", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, bool]:
    """The original model with a head for ``head``'s classes, its tokenizer, and whether the head is new (random, by the
    seed of `torch`). Raises `FasError` for a missing folder or a head for other classes."""
    config = original_config(model)
    has_head = auto_class_of(config) is AutoModelForSequenceClassification
    if has_head and config.num_labels != head.size:
        raise FasError(
            f"{model} has a head for {config.num_labels} classes and the data has {head.size}; give the model that it was "
            "made from, or the data that it was trained on"
        )
    more: dict[str, Any] = {} if has_head else head.settings()
    loaded, tokenizer, missing = loaded_with(model, device, dtype, AutoModelForSequenceClassification, more)
    prefix = f"{loaded.base_model_prefix}."
    lacking = [name for name in missing if name.startswith(prefix) and ".pooler." not in name]
    if lacking or (has_head and missing):
        raise CheckpointError(f"{model} lacks {len(missing)} weights, first {min(lacking or missing)}")
    if loaded.config.pad_token_id is None:
        loaded.config.pad_token_id = tokenizer.pad_token_id
    if loaded.config.pad_token_id is None:
        raise FasError(f"{model} has no padding token, so texts of different length cannot be one batch")
    return loaded, tokenizer, not has_head
