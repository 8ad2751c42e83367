"""Weights that lie elsewhere between forwards: accelerate's offloading leaves empty (meta) tensors, and brings the values back
around the forward of the module that holds them. Here is what those need who read them outside of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fas.errors import FasError

if TYPE_CHECKING:
    from torch import Tensor, nn


def at_hand(module: nn.Module, name: str) -> Any:
    """The parameter or buffer ``name`` of ``module`` as the forward of ``module`` would see it; None where it has none.

    What lies nowhere (a model that is being built on the meta device) stays a meta tensor.
    """
    value: Tensor | None = getattr(module, name, None)
    if value is None or not value.is_meta or (hook := module.__dict__.get("_hf_hook")) is None:
        return value
    hook.pre_forward(module)
    try:
        return getattr(module, name)
    finally:
        hook.post_forward(module, None)


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate moves weights, inputs or outputs of ``model`` around its forward."""
    return "_hf_hook" in model.__dict__


def refuse_offloaded(model: nn.Module, what: str) -> None:
    """Raise `FasError` where weights of ``model`` lie elsewhere, so that ``what`` could not read or change them."""
    away = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    if away:
        raise FasError(
            f"{what} needs all weights of {type(model).__name__} in memory, and {len(away)} of them lie elsewhere "
            f"(offloaded to a disk or a CPU, or never loaded), first {away[0]}; load the model without device_map or "
            "offloading, or use the commands that go from disk (fas convert --from-disk)"
        )
