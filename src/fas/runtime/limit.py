"""A limit to the memory of activations: forwards that would exceed it run some sequences at a time.

What fits runs whole; what a call takes is measured on one of its sequences (`fas.runtime.need`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import update_wrapper
from itertools import pairwise
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fas.errors import ConfigError, FasError
from fas.given import model_from
from fas.models.family import REGISTRY
from fas.neurons import Clock, Site
from fas.runtime import mean_loss, rows
from fas.runtime.folding import FoldHook
from fas.runtime.need import Need, Needs
from fas.runtime.sizes import bytes_in, in_words
from fas.turns import Turns

logger = logging.getLogger(__name__)


class Limited:
    """Stands in the place of a model's forward."""

    def __init__(self, model: nn.Module, limit: int, clock: Clock | None) -> None:
        self.model, self.limit, self.forward = model, limit, model.forward
        update_wrapper(self, self.forward)  # generate looks at the signature
        self.names = [name for name in inspect.signature(type(model).forward).parameters if name != "self"]
        families = [REGISTRY[name] for module in model.modules() if (name := type(module).__name__) in REGISTRY]
        self.axes = {name: axis for family in families for name, axis in family.batch_axis.items()}
        self.packs = any(family.packed for family in families)
        self.clock, self.needs = clock, Needs(clock)
        self.said: set[str] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # gradients keep what they need; and who follows operations wants to see those of the model as it is
        if torch.is_grad_enabled() or is_in_torch_dispatch_mode() or torch.compiler.is_compiling():
            return self.forward(*args, **kwargs)
        named = dict(zip(self.names, args, strict=False)) | kwargs
        cache, sequences = named.get("past_key_values"), rows.rows_in(named)
        if rows.is_filled(cache) or sequences == 0:  # few new tokens
            return self.forward(**named)
        why = "no argument says how many sequences it has" if sequences is None else self._obstacle(named, sequences)
        if why is not None or sequences is None:
            self._whole(why)
            return self.forward(**named)
        if (bound := self.needs.bound(named, sequences)) is not None and bound.peak * sequences <= self.limit:
            return self.forward(**named)
        return self._in_chunks(named, sequences)

    def _obstacle(self, named: dict[str, Any], sequences: int) -> str | None:
        images, ids = named.get("pixel_values"), named.get("input_ids")
        if self.packs and images is not None:
            return "its images are packed in one row"
        token = getattr(getattr(self.model, "config", None), "image_token_id", None)
        if token is not None and isinstance(images, Tensor) and isinstance(ids, Tensor):
            pieces = (ids == token).sum(-1)
            if bool((pieces != pieces[0]).any()):
                return "its sequences have different numbers of images"
        return rows.obstacle(named, self.axes, sequences)

    def _whole(self, why: str | None) -> None:
        if why is not None and why not in self.said:
            self.said.add(why)
            logger.warning("%s runs whole in spite of the memory limit: %s", type(self.model).__name__, why)

    def _in_chunks(self, named: dict[str, Any], sequences: int) -> Any:
        labels = named.get("labels")
        labels = labels if isinstance(labels, Tensor) and labels.shape[:1] == (sequences,) else None
        need = self.needs.of(self.forward, named, self.axes, sequences, labels)
        if need.peak * sequences <= self.limit:
            return self.forward(**named)
        if need.compares:
            self._whole("it compares each sequence with all others")
            return self.forward(**named)
        chunk = self._chunk(need, sequences)
        counts = torch.ones(sequences) if labels is None else mean_loss.shares(self.model, labels, need.loss)
        together = rows.Together(self.model, sequences, named.get("past_key_values"))
        number = -(-sequences // chunk)
        borders = [sequences * n // number for n in range(number + 1)]
        for first, after in pairwise(borders):
            part = rows.part(named, self.axes, sequences, first, after - first)
            share = float(counts[first:after].sum() / counts.sum())
            together.add(self.forward(**part), first, after - first, share)
        return together.finish()

    def _chunk(self, need: Need, sequences: int) -> int:
        """How many sequences fit at once; raises `FasError` if not even one does."""
        if (chunk := min(sequences, (self.limit - need.given * sequences) // max(1, need.peak))) >= 1:
            return chunk
        name, limit = type(self.model).__name__, in_words(self.limit)
        if need.peak <= self.limit:
            raise FasError(
                f"what {name} gives for {sequences} sequences takes {in_words(need.given * sequences)}, which with the "
                f"{in_words(need.peak)} of one running sequence exceeds the memory limit of {limit}; give it fewer sequences "
                "at once, or raise the limit"
            )
        time = ", fewer timesteps or schedule='layerwise'" if self.clock is not None and self.clock.folds else ""
        raise FasError(
            f"one sequence of {name} needs {in_words(need.peak)} for its activations, more than the memory limit of {limit}; "
            f"choose shorter sequences{time}, or raise the limit"
        )


Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def memory_limit(model: Model, limit: int | str) -> Iterator[Model]:
    """Inside, a forward of ``model`` (and each of ``generate`` that fills a cache) whose activations would take more than
    ``limit`` (bytes, or text such as ``"2 GiB"``) runs a part of its sequences after the other; weights do not count.

    Outputs are those of the whole batch, to the rounding of matrix products of other shapes, with its mean loss and its cache.
    The limit is for tensors, not for what libraries hold beside them. Calls with gradients, and those that only add a token
    to a cache, run whole, and so does, with a warning, a batch that cannot be taken apart (packed images). Any model will do,
    converted or not. Raises `ConfigError` for a limit that is none and for a bare segment, and at a call `FasError` where one
    sequence, or the output of all, does not fit.
    """
    model_from(model, "fas.memory_limit", nn.Module)
    size = bytes_in(limit)
    if any(isinstance(hook, FoldHook) for hook in model._forward_pre_hooks.values()):
        raise ConfigError(
            f"{type(model).__name__} is a bare segment, which folds time before its batch could be taken apart; limit the "
            "memory of a model with a head, or give it smaller batches"
        )
    clock = next((module.clock for module in model.modules() if isinstance(module, Site)), None)
    turns = _TURNS.setdefault(model, Turns()) if clock is None else clock.turns

    def begin(undo: ExitStack) -> None:
        undo.callback(_restore, model, vars(model).get("forward"))
        model.forward = Limited(model, size, clock)  # type: ignore[method-assign]

    with turns.layered("fas.memory_limit", begin):
        yield model


_TURNS: WeakKeyDictionary[nn.Module, Turns] = WeakKeyDictionary()
"""Of models without a clock."""


def _restore(model: nn.Module, forward: Any) -> None:
    if forward is None:
        del model.forward
    else:
        model.forward = forward  # type: ignore[method-assign]
