"""All or nothing: a verb that fails in the middle leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Keep = Callable[[Iterable[Tensor]], None]
"""Remembers the values of tensors that are about to be written to."""
_CONTAINERS = (dict, list, set)


@contextmanager
def atomic(model: nn.Module, *others: Any) -> Iterator[Keep]:
    """Undo all changes of ``model`` if the body raises: its modules, classes, hooks, attributes and configurations.

    ``others`` are further objects whose attributes are put back, such as the clock. Values of parameters are put back where
    the body has asked for it: call what this gives with the tensors before writing to them, which costs a copy of each.
    """
    parts = list(model.modules())
    configs = {id(part.config): part.config for part in parts if isinstance(part, PreTrainedModel)}
    before = [_Attributes(thing) for thing in (*parts, *configs.values(), *others)]
    values: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if id(tensor) not in values:
                values[id(tensor)] = tensor, tensor.detach().clone()

    try:
        yield keep
    except BaseException:
        for attributes in before:
            attributes.put_back()
        with torch.no_grad():
            for tensor, value in values.values():
                tensor.copy_(value)
        raise


class _Attributes:
    """What an object holds, one level deep: containers are put back into themselves, for others hold on to them, too."""

    def __init__(self, thing: Any) -> None:
        self.thing, self.kind = thing, type(thing)
        self.values = dict(vars(thing))
        self.contents = {name: copy(value) for name, value in self.values.items() if isinstance(value, _CONTAINERS)}

    def put_back(self) -> None:
        if type(self.thing) is not self.kind:
            self.thing.__class__ = self.kind
        vars(self.thing).clear()
        vars(self.thing).update(self.values)
        for name, content in self.contents.items():
            held: Any = self.values[name]
            held.clear()
            held.extend(content) if isinstance(held, list) else held.update(content)
