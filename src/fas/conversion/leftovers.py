"""Weights that a checkpoint lacks, which transformers fills at random, and those that the model has no place for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from fas.conversion.card import is_converted
from fas.conversion.files import read_json
from fas.conversion.manifest import CONFIG
from fas.errors import CheckpointError

logger = logging.getLogger(__name__)
_COMPUTED = ("inv_freq", "masked_bias", "position_ids", ".attn.bias")
"""Endings of buffers that older versions of transformers stored and models compute."""

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""What DataParallel, torch.compile and FSDP put in front of all names."""


def refuse_leftovers(model: nn.Module, names: Iterable[str], place: str) -> None:
    """Raise `CheckpointError` for weights in ``place`` that ``model`` has no place for although it has their module, or that
    are of a layer; others are of a head for another task, and are left out with a note."""
    modules, names = dict(model.named_modules()), sorted(names)
    wrapper = next((w for w in _WRAPPERS if names and all(name.startswith(w) for name in names)), None)
    if wrapper is not None:
        raise CheckpointError(
            f"{place} holds weights that a wrapper has saved under its own names ({len(names)}, first {names[0]}); take "
            f"{wrapper} off their names, or save the model inside of the wrapper"
        )
    inside = [
        name
        for name in names
        if not name.endswith(_COMPUTED)
        and (name.rpartition(".")[0] in modules or any(part.isdigit() for part in name.split(".")))
    ]
    if inside:
        raise CheckpointError(
            f"{place} holds {len(inside)} weights that its config.json has no place for, first {inside[0]}: the model would "
            "compute something else without them; mend config.json (number of layers, biases)"
        )
    if names:
        logger.info("%s holds %d weights of another head, which are left out, first %s", place, len(names), names[0])


def refuse_missing(model: PreTrainedModel, names: Iterable[str], place: str) -> None:
    """Raise `CheckpointError` for weights ``names`` that ``place`` lacks, but for those of a head that it was saved without."""
    lacking = set(names)
    tied = getattr(model, "all_tied_weights_keys", {})  # those to a weight that is missing itself are not counted
    names = sorted(name for name in lacking if tied.get(name) not in lacking)
    saved_as = (model.config.architectures or [""])[0]
    if names and saved_as != type(model).__name__:
        known = _weights_of(saved_as, model)
        names = [name for name in names if known is None or _without_prefix(name, model) in known]
    if names:
        raise CheckpointError(
            f"{place} lacks {len(names)} weights, first {names[0]}, which would be filled at random: it is damaged; save the "
            "model anew (save_pretrained)"
        )


def refuse_plain_config(place: str, config: Any) -> None:
    """Raise `CheckpointError` where ``place`` is a converted folder and ``config``, which is given for its own, is an ANN's."""
    if getattr(config, "quantization_config", None) is not None or isinstance(config, str | os.PathLike):
        return
    if is_converted(read_json(Path(place) / CONFIG)):
        raise CheckpointError(
            f"{place} is a converted model, and the configuration that was given for it has no quantization_config: its "
            "neurons would be left out; load it without config=, or with its own"
        )


def watched(model: PreTrainedModel) -> Callable[[], tuple[set[str], set[str]]]:
    """What transformers will find missing and unexpected while it loads ``model``, once it has."""
    found: list[Any] = []
    adjust = model._adjust_missing_and_unexpected_keys

    def noted(loading_info: Any) -> None:
        adjust(loading_info)
        found.append(loading_info)

    model._adjust_missing_and_unexpected_keys = noted  # type: ignore[method-assign]

    def told() -> tuple[set[str], set[str]]:
        model.__dict__.pop("_adjust_missing_and_unexpected_keys", None)
        missing = {name for info in found for name in info.missing_keys}
        return missing, {name for info in found for name in info.unexpected_keys}

    return told


def _weights_of(saved_as: str, model: PreTrainedModel) -> set[str] | None:
    """Weights of the class of transformers called ``saved_as``, without its prefix; None where it has none of that name."""
    cls = getattr(transformers, saved_as, None)
    if cls is None:
        return None
    with torch.device("meta"):
        return {_without_prefix(name, model) for name in cls(model.config).state_dict()}


def _without_prefix(name: str, model: PreTrainedModel) -> str:
    """``name`` as an inner model has it."""
    return name.removeprefix(f"{model.base_model_prefix}.")
