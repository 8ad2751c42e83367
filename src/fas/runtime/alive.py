"""What code takes, counted while it runs: bytes of tensors that are alive at once, bytes written, operations of products."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Cost:
    """Bytes that were alive at once beside what was there before, bytes that were alive in the end, bytes that were written in
    all, and operations of matrix products (a multiply–accumulate is two)."""

    peak: int = 0
    kept: int = 0
    written: int = 0
    flops: int = 0


class _Live(TorchDispatchMode):
    """Follows the storages that operations make, from the operation to the end of their last tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.written = self.flops = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for given in _storages((args, kwargs)):
            self._see(given, 0)  # what is not known yet was there before
        result = func(*args, **kwargs)
        products = flop_registry.get(func._overloadpacket)
        if products is not None:
            self.flops += products(*args, **kwargs, out_val=result)
        for made in _storages(result):
            self._see(made, made.nbytes())
        return result

    def _see(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self.sizes:  # a view, or written in place
            return
        self.sizes[key] = size
        self.live += size
        self.written += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


def traced(run: Callable[[], Any]) -> Cost:
    """Cost of ``run``, on tensors with values or without; what it returns counts as alive to its end."""
    with _Live() as live:
        kept = run()
    cost = Cost(live.peak, live.live, live.written, live.flops)
    del kept
    return cost
