"""Models that are built once a process: every test gets a copy, and the random numbers that building leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)
_BUILT: dict[str, tuple[PreTrainedModel, Tensor]] = {}


def copy_of(key: object, build: Callable[[], Model]) -> Model:
    """A copy of what ``build``, which ``key`` (by its repr) says everything of, gave the first time."""
    name = repr(key)
    if name not in _BUILT:
        _BUILT[name] = build(), torch.get_rng_state()
    model, numbers = _BUILT[name]
    torch.set_rng_state(numbers)
    return copy.deepcopy(model)  # type: ignore[return-value]
