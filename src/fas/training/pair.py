"""The ANN and the QCFS model that it becomes, where the weights of one block at a time are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion.install import decoders
from fas.conversion.prefix_search import find_prefix
from fas.errors import ConfigError, FasError
from fas.models import Placement, Segment, note_unknown, planned
from fas.progress import Progress
from fas.runtime.prefix import attention_modules, fill_prefix, prefix_of, prefix_states
from fas.runtime.replay import blocks_of

Loaded = Callable[[PreTrainedModel, Iterable[nn.Module]], AbstractContextManager[None]]
"""Inside the context the parameters of these modules of the model are in memory."""
States = dict[int, tuple[Tensor, Tensor]]
"""Keys and values of a prefix by layer."""


@dataclass(frozen=True)
class Pair:
    """The ANN, which teaches, and the same model once more, which becomes its QCFS model."""

    teacher: PreTrainedModel
    student: PreTrainedModel
    device: torch.device
    loaded: Loaded


def only_segment(model: PreTrainedModel, config: SpikingConfig) -> tuple[Segment, list[Placement]]:
    """The one segment of ``model`` with its sites to be; raises `FasError` where there are several, or no blocks."""
    plan = planned(model, config)
    note_unknown(model, [segment for segment, _ in plan])
    kind = type(model).__name__
    if len(plan) != 1:
        names = ", ".join(segment.name for segment, _ in plan)
        raise FasError(
            f"{kind} spikes in several parts ({names}), and Stage 1 a block at a time is for one; choose stage1='full'"
        )
    if not blocks_of(plan[0][0]):
        raise FasError(f"{kind} has no repeated blocks that could be trained one at a time; choose stage1='full'")
    return plan[0]


@contextmanager
def in_turn(pair: Pair, segment: Segment) -> Iterator[None]:
    """Inside, the whole teacher runs: each of its blocks is in memory while it does."""
    blocks = blocks_of(segment)
    inside = {id(module) for block in blocks for module in block.modules()}
    outside = [module for module in pair.teacher.modules() if id(module) not in inside]
    running = ExitStack()

    def begin(block: nn.Module, *_: Any) -> None:
        running.enter_context(pair.loaded(pair.teacher, block.modules()))

    def end(*_: Any) -> None:
        running.close()

    with ExitStack() as stack:
        stack.enter_context(pair.loaded(pair.teacher, outside))
        stack.callback(running.close)
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(begin, prepend=True).remove)
            stack.callback(block.register_forward_hook(end).remove)
        yield


def prefix_for(
    pair: Pair,
    segment: Segment,
    places: Sequence[Placement],
    config: SpikingConfig,
    batches: Sequence[Mapping[str, Any]],
    progress: Progress,
) -> tuple[tuple[int, ...], States]:
    """The tokens of the prefix that ``config`` asks for, found on ``batches`` where it is ``auto``, and their keys and values.

    Raises `ConfigError` for a prefix of a model that can have none.
    """
    tokens = config.prefix
    if not decoders([(segment, list(places))]):
        if tokens not in ("auto", ()):
            raise ConfigError(f"prefix={tokens} is for causal decoders, and {type(pair.teacher).__name__} has none")
        return (), {}
    if not tokens:
        return (), {}
    with in_turn(pair, segment):
        if tokens == "auto":
            tokens = find_prefix(pair.teacher, segment, places, batches, config, progress).tokens
        return tuple(tokens), prefix_states(segment, tokens) if tokens else {}


def fill(segment: Segment, states: States, device: torch.device) -> None:
    """Set the constants of the prefix of ``segment``, which may have no memory yet."""
    for module in attention_modules(segment).values():
        if (prefix := prefix_of(module)) is not None and prefix.key.is_meta:
            prefix.to_empty(device=device)
    fill_prefix(segment, states)
