"""Numbers that are none: NaN and infinity in weights, and where they first appear among activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fas.errors import CheckpointError, DataError


def require_finite(model: nn.Module, place: str = "") -> None:
    """Raise `CheckpointError` with the first parameter or buffer of ``model`` that holds NaN or infinity.

    Tensors without memory (meta) are not looked at. Buffers that are not saved, such as masks, may be infinite. ``place``
    says where the model is from.
    """
    passing = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in model.named_modules()
        for name in part._non_persistent_buffers_set
    }
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if name not in passing:
            require_finite_weight(name, value, place or type(model).__name__)


def require_finite_weight(name: str, value: Tensor, place: str) -> None:
    """Raise `CheckpointError` if the weight ``name`` of ``place`` holds NaN or infinity."""
    if not is_finite(value):
        raise CheckpointError(
            f"{place}: the weight {name} is not finite ({_first_of(value)}); the checkpoint is damaged or its training "
            "diverged, so start from a sound one"
        )


def is_finite(value: Tensor) -> bool:
    """Whether all of ``value`` is finite; true of integers and of tensors without memory (meta, or of a dry run)."""
    if value.is_meta or isinstance(value, FakeTensor) or not value.numel() or not value.is_floating_point():
        return True
    if type(value.detach()) is not Tensor and hasattr(value, "dequantize"):  # quantized weights know few operations
        value = value.dequantize()
    low, high = torch.aminmax(value.detach())  # NaN goes through both; no tensor of its size is made
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _first_of(value: Tensor) -> str:
    flat = value.detach().reshape(-1)
    bad = (~torch.isfinite(flat)).nonzero().flatten()
    index = [int(i) for i in torch.unravel_index(bad[0], value.shape)]
    return f"{float(flat[bad[0]])} at {index}, {len(bad)} of {flat.numel()} values"


@contextmanager
def finite_activations(model: nn.Module, what: str = "the data") -> Iterator[None]:
    """Inside, raise `DataError` with the first module whose output is not finite, while ``model`` runs on ``what``."""
    handles = [
        module.register_forward_hook(_watch(name, what))
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(name: str, what: str) -> Callable[[nn.Module, Any, Any], None]:
    def look(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not is_finite(output):
            raise DataError(
                f"the output of {name} ({type(module).__name__}) is not finite on {what}: its numbers overflow "
                f"{str(output.dtype).removeprefix('torch.')} ({_first_of(output)}); start from a sound model, or a wider dtype"
            )

    return look
