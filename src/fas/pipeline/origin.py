"""What a conversion starts from: the original model, what reads its inputs, and examples; and what its classes are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from fas.tasks.examples import Examples
from fas.tasks.reading.journal import Reading

Reader = PreTrainedTokenizerBase | ProcessorMixin
"""What turns text, or images and text, into arguments of a model."""


@dataclass(frozen=True)
class Source:
    """Loaded and checked, nothing computed yet."""

    fresh: Callable[[], PreTrainedModel]
    """The original model, each time the same."""
    tokenizer: Reader
    training: Examples
    held_out: Examples
    evaluation: Examples
    reading: Reading
    """What was read of the data, and what was skipped."""
    new_head: bool = False
    """Whether the original model has yet to learn the task."""


def in_order_of(config: PretrainedConfig, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """``names`` of classes in the order of the head of ``config``, where it knows them by these names, in capitals or not."""
    if names is None:
        return ()
    own, spelled = [name.lower() for name in names_of(config)], {name.lower(): name for name in names}
    return tuple(spelled[name] for name in own) if sorted(own) == sorted(spelled) else names


def name_classes(config: PretrainedConfig, names: tuple[str, ...]) -> None:
    """Have the head of ``config`` call its classes ``names``, so that a saved model is measured by them; () leaves it."""
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}


def names_of(config: PretrainedConfig) -> tuple[str, ...]:
    """The classes of a model's head in their order; a regression ignores them."""
    return tuple(str(name) for _, name in sorted((config.id2label or {}).items()))
