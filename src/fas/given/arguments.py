"""One batch as keyword arguments of a model: names that it has, tensors of the right kind and shape, where it is."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils.generic import TransformersKwargs, find_labels

from fas.errors import DataError
from fas.given.kinds import kind_of
from fas.given.vocabulary import context_of, require_tokens, require_width

INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "pixel_values_videos", "input_features", "input_values")
"""Endings of the arguments that a model reads."""
LABELS = frozenset({"labels", "label", "label_ids"})
"""What collators call them, beside the names that the model itself has."""
ALIKE = ("attention_mask", "token_type_ids", "bbox")
"""Arguments of a value for each token."""
TOKENIZE = "give what the tokenizer makes of it: tokenizer(texts, return_tensors='pt')"
PIXELS = 3
"""Axes of one picture."""


class Arguments:
    """The arguments of ``model``; ``labels``: whether its own labels are kept."""

    def __init__(self, model: nn.Module, verb: str, device: torch.device | None, labels: bool = False) -> None:
        self.model, self.verb, self.keeps_labels = model, verb, labels
        self.device = device or _device_of(model)
        self.names = _names(model)
        self.labels = set(LABELS) | set(find_labels(type(model)))
        self.main = getattr(model, "main_input_name", "input_ids")
        self.context = context_of(model)
        self.left_out: list[str] = []
        """Names that the model does not take, so far."""

    def read(self, value: Any, which: str) -> dict[str, Any]:
        """``value`` as arguments; ``which`` batch it is, for messages."""
        self.where = f"{self.verb}: {which}"
        given = self._named(value)
        found = {name: self._argument(name, entry) for name, entry in given.items() if self._is_taken(name)}
        labels = self._labels(given)
        if not any(name.endswith(INPUTS) for name in found):
            words = any(isinstance(entry, str) or isinstance(_first(entry), str) for entry in given.values())
            names = ", ".join(map(str, given)) or "nothing"
            raise DataError(
                f"{self.where} holds {names}, and no {self.main}, which the model reads"
                + (f"; {TOKENIZE}" if words else "")
            )
        found = _as_batch(found)
        self._check(found)
        if labels is not None and "decoder_input_ids" not in found and not self.keeps_labels:
            found |= self._decoder(labels, found)
        return {name: self._placed(name, entry) for name, entry in found.items()}

    def _named(self, value: Any) -> Mapping[str, Any]:
        """``value`` with the names of arguments."""
        if isinstance(value, Mapping):
            return value
        if isinstance(value, tuple | list) and len(value) == 1 and isinstance(value[0], Tensor | np.ndarray):
            value = value[0]  # of a TensorDataset
        first = _first(value)
        if isinstance(value, Tensor | np.ndarray) or isinstance(first, int | float | np.generic):
            return {self.main: value}
        if isinstance(value, str | bytes) or isinstance(first, str):
            raise DataError(f"{self.where} is text; {TOKENIZE}")
        several = f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise DataError(
            f"{self.where} is {kind_of(value)}{several}, and does not say which argument is which; give a dict, such as "
            f"{{{self.main!r}: …}}"
        )

    def _is_taken(self, name: Any) -> bool:
        if name in self.labels:
            return self.keeps_labels and name in self.names
        if name in self.names:
            return True
        near = difflib.get_close_matches(str(name), [n for n in self.names if n not in self.labels], 1, 0.88)
        if near:
            raise DataError(f"{self.where} has {name!r}, which the model does not take; did you mean {near[0]!r}?")
        if str(name) not in self.left_out:
            self.left_out.append(str(name))
        return False

    def _argument(self, name: str, value: Any) -> Any:
        """``value`` as a tensor, where it is numbers."""
        first = _first(value)
        if isinstance(first, str) and name.endswith(INPUTS):
            raise DataError(f"{self.where}: {name} is text; {TOKENIZE}")
        if isinstance(value, np.ndarray) or isinstance(first, int | float | np.generic):
            value = self._tensor(name, value)
        elif isinstance(first, Tensor) and name.endswith((*INPUTS, *ALIKE)):
            raise DataError(
                f"{self.where}: {name} is a list of {len(value)} tensors, by sequence or by token (which a DataLoader makes of "
                "lists); give one tensor of the shape [sequences, tokens]: torch.stack, or Dataset.with_format('torch')"
            )
        if name.endswith(INPUTS) and not isinstance(value, Tensor | Cache) and value is not None:
            raise DataError(f"{self.where}: {name} is {kind_of(value)}, and must be a tensor; give return_tensors='pt'")
        if isinstance(value, Tensor) and name.endswith(INPUTS):
            self._check_numbers(name, value)
        if isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
            value = value.long() if name.endswith(("input_ids", *ALIKE)) else value
        return value

    def _tensor(self, name: str, value: Any) -> Tensor:
        try:
            return torch.as_tensor(np.asarray(value) if isinstance(value, Sequence) else value)
        except (TypeError, ValueError):
            lengths = sorted({len(row) for row in value if hasattr(row, "__len__")})
            raise DataError(
                f"{self.where}: {name} holds rows of different lengths ({', '.join(map(str, lengths))}) or no numbers; give "
                "one batch for each length, or tokenizer(texts, padding=True, return_tensors='pt')"
            ) from None

    def _check_numbers(self, name: str, value: Tensor) -> None:
        if value.layout is not torch.strided or value.is_nested:
            raise DataError(f"{self.where}: {name} is a sparse or nested tensor; give a dense one: .to_dense()")
        kind = str(value.dtype).removeprefix("torch.")
        if name.endswith("input_ids"):
            if value.is_floating_point() or value.is_complex() or value.dtype is torch.bool:
                raise DataError(
                    f"{self.where}: {name} has values of {kind}, and token ids are whole numbers; give ids.long() if they are"
                )
        elif not value.is_floating_point():
            raise DataError(
                f"{self.where}: {name} has values of {kind}, and the model reads what its processor makes of them, which are "
                "floating point numbers"
            )
        if value.is_meta and self.device is not None and self.device.type != "meta":
            raise DataError(f"{self.where}: {name} is on the device meta, where tensors have no values")

    def _labels(self, given: Mapping[str, Any]) -> Tensor | None:
        """The labels of an encoder–decoder, which say what its decoder reads."""
        value = given.get("labels")
        if value is None or "decoder_input_ids" not in self.names:
            return None
        labels = self._argument("labels", value)
        return labels if isinstance(labels, Tensor) and not labels.is_floating_point() else None

    def _decoder(self, labels: Tensor, found: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the decoder reads in front of ``labels`` ``[B, S]`` (−100: padding)."""
        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if shift is None or "decoder_inputs_embeds" in found:
            return {}
        labels = labels[None] if labels.ndim == 1 else labels
        made = {"decoder_input_ids": shift(labels=labels)}
        if bool((labels == -100).any()) and "decoder_attention_mask" not in found:
            made["decoder_attention_mask"] = (labels != -100).long()
        return made

    def _check(self, found: Mapping[str, Any]) -> None:
        """Shapes and values that agree with one another and with the model."""
        for name, value in found.items():
            if isinstance(value, Tensor) and name.endswith(INPUTS):
                if not value.numel():
                    raise DataError(f"{self.where}: {name} has the shape {list(value.shape)}: there is nothing in it")
                if name.endswith("inputs_embeds"):
                    require_width(self.model, value, f"{self.where}: {name}")
                if name.endswith("input_ids"):
                    require_tokens(self.model, value, f"{self.where}: {name}")
        ids = found.get("input_ids")
        if ids is not None and found.get("inputs_embeds") is not None:
            raise DataError(f"{self.where} has input_ids and inputs_embeds, which say the same; give one of them")
        choices = "MultipleChoice" in type(self.model).__name__
        if isinstance(ids, Tensor) and ids.ndim != 2 + choices:
            axes = "[sequences, choices, tokens]" if choices else "[sequences, tokens]"
            raise DataError(f"{self.where}: input_ids has the shape {list(ids.shape)}, and must have {axes}")
        if not isinstance(ids, Tensor) or found.get("past_key_values") is not None:
            return
        for name in ALIKE:
            value = found.get(name)
            if isinstance(value, Tensor) and value.ndim == ids.ndim and value.shape != ids.shape:
                raise DataError(
                    f"{self.where}: {name} has the shape {list(value.shape)}, and input_ids {list(ids.shape)}; give one value "
                    "for each token"
                )
        if self.context is not None and ids.shape[-1] > self.context:
            raise DataError(
                f"{self.where}: input_ids holds {ids.shape[-1]} tokens a sequence, and the model has a context of "
                f"{self.context}; cut them: max_length={self.context}, truncation=True"
            )

    def _placed(self, name: str, value: Any) -> Any:
        """``value`` where the model is, and of its dtype where the model would compute with it."""
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        dtype = getattr(self.model, "dtype", None)
        if (
            name.endswith(INPUTS)
            and value.is_floating_point()
            and isinstance(dtype, torch.dtype)
            and dtype.is_floating_point
        ):
            value = value.to(dtype)
        return value if self.device is None or self.device.type == "meta" else value.to(self.device)


def _as_batch(found: dict[str, Any]) -> dict[str, Any]:
    """A single sequence or picture as a batch of it: tensors get a first axis."""
    ids, pixels = found.get("input_ids"), found.get("pixel_values")
    if isinstance(ids, Tensor) and ids.ndim == 1:
        found = {
            name: value[None] if isinstance(value, Tensor) and value.shape == ids.shape else value
            for name, value in found.items()
        }
    alone = not isinstance(ids, Tensor)
    if isinstance(pixels, Tensor) and pixels.ndim == PIXELS and (alone or ids.ndim == 1):  # type: ignore[union-attr]
        found["pixel_values"] = pixels[None]
    return found


def _first(value: Any) -> Any:
    """The first number, text or tensor in nested lists; None where there is none, or ``value`` is no list."""
    if isinstance(value, str | bytes) or not isinstance(value, list | tuple):
        return None
    while isinstance(value, list | tuple):
        if not value:
            return None
        value = value[0]
    return value if isinstance(value, int | float | str | np.generic | Tensor) else None


def _names(model: nn.Module) -> set[str]:
    """Arguments that ``model``, or a part of it that it hands them on to, takes by name."""
    named = set(TransformersKwargs.__annotations__) | {"use_cache", "return_dict", "logits_to_keep", "cache_position"}
    for module in model.modules():
        if module is model or isinstance(module, PreTrainedModel):
            parameters = inspect.signature(type(module).forward).parameters.values()
            named |= {entry.name for entry in parameters if entry.kind not in (entry.VAR_KEYWORD, entry.VAR_POSITIONAL)}
    return named - {"self"}


def _device_of(model: nn.Module) -> torch.device | None:
    return next((value.device for value in (*model.parameters(), *model.buffers())), None)
