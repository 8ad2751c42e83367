"""Batches as a user has them, as the keyword arguments that the model takes: one reader for all verbs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fas.errors import DataError
from fas.given.arguments import Arguments
from fas.given.kinds import kind_of
from fas.given.padding import without_padding
from fas.notes import warn

Batches = Iterable[Any] | Mapping[str, Any] | Tensor
"""Batches, or a single one: what `batches_for` takes."""
TEXTS = "texts are not tokenized here: give tokenizer(texts, return_tensors='pt'), in batches of equal length"


def batches_for(
    model: nn.Module, batches: Any, verb: str, device: torch.device | None = None, whole: bool = False
) -> list[dict[str, Any]]:
    """``batches`` as keyword arguments of ``model`` without labels, checked and where the model is.

    A batch is a mapping of arguments, or the model's main input alone. Taken are a list or another iterable of batches (a
    DataLoader, a dataset, whose rows are sequences), and a single batch. Arguments that the model does not have are left out,
    with a warning. Raises `DataError` for what is no batch of this model, and where there are none.

    Args:
        model: Who will be given them; it is only looked at.
        batches: What the user has.
        verb: Who asks, for messages.
        device: Where tensors are to be; None: where the model is.
        whole: Whether padding is cut away (`without_padding`).
    """
    arguments = Arguments(model, verb, device)
    listed = [arguments.read(value, f"batch {number}") for number, value in enumerate(_read(batches, verb))]
    if not listed:
        raise DataError(
            f"{verb}: no calibration batches, for {kind_of(batches)} holds none; give at least one batch (an iterator that "
            "was used before is empty)"
        )
    if arguments.left_out:
        names = ", ".join(arguments.left_out)
        warn(f"{verb} leaves out {names} of the batches, which {type(model).__name__} does not take")
    return without_padding(listed, verb) if whole else listed


def batch_for(model: nn.Module, batch: Any, verb: str) -> dict[str, Any]:
    """One batch, as `batches_for` with its labels; a list may hold no more than that one."""
    found = list(_few(_read(batch, verb)))
    if len(found) != 1:
        raise DataError(
            f"{verb} runs one batch, and {kind_of(batch)} holds {'none' if not found else 'several'}; give one, such as "
            "next(iter(…))"
        )
    arguments = Arguments(model, verb, None, labels=True)
    return arguments.read(found[0], "the batch")


def _few(values: Iterator[Any]) -> Iterator[Any]:
    """Not more than two."""
    for _, value in zip(range(2), values, strict=False):
        yield value


def _read(batches: Any, verb: str) -> Iterator[Any]:
    """`_each`, where what fails in the user's own data set or loader is told with its place."""
    each, number = _each(batches, verb), 0
    while True:
        try:
            value = next(each)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(
                f"{verb}: batch {number} could not be read from {kind_of(batches)} ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); mend the data set, or how it is collated"
            ) from error
        yield value
        number += 1


def _each(batches: Any, verb: str) -> Iterator[Any]:
    """The batches of ``batches`` one after the other."""
    if isinstance(batches, str | bytes):
        raise DataError(f"{verb} needs batches, and was given text; {TEXTS}")
    if isinstance(batches, Tensor | np.ndarray):
        return iter([batches])
    if isinstance(batches, Mapping):
        return iter([_single(batches, verb)])
    if isinstance(batches, Iterable):
        return iter(batches)
    if hasattr(batches, "__getitem__") and hasattr(batches, "__len__") and not isinstance(batches, type):
        return (batches[index] for index in range(len(batches)))  # a Dataset of torch
    raise DataError(
        f"{verb} needs batches, and was given {kind_of(batches)}; give a list of batches, each the keyword arguments of the "
        "model, such as [{'input_ids': ids}] with ids of shape [sequences, tokens]"
    )


def _single(batch: Mapping[Any, Any], verb: str) -> Mapping[Any, Any]:
    parts = [name for name, value in batch.items() if hasattr(value, "column_names") or isinstance(value, Mapping)]
    if parts:
        raise DataError(
            f"{verb} needs batches, and {kind_of(batch)} holds several data sets ({', '.join(map(str, parts))}); give one of "
            f"them: [{parts[0]!r}]"
        )
    return batch
