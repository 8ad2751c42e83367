"""A converted model on FAS's own CPU kernels, while nothing but activations changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from fas.errors import ConfigError, FasError
from fas.given import model_from
from fas.models import find_segments
from fas.models.linear import by_input, is_plain
from fas.neurons import Clock, Site
from fas.runtime.control import clock_of
from fas.runtime.decoding import attention_in_place
from fas.runtime.folding import follow
from fas.runtime.hooks import SiteHook
from fas.runtime.products import CODES, Product

Model = TypeVar("Model", bound=nn.Module)
BITS = (0, 8, 16, 24)


@contextmanager
def accelerated(model: Model, bits: int = 0) -> Iterator[Model]:
    """Inside, without gradients and on a CPU, a converted model writes tokens faster, with results equal to rounding.

    * Linear layers of few rows (a token, in all its timesteps) read their weights once, and only those of neurons that fired.
    * Analog attention of single tokens reads the cache in place.
    * Linear layers in front of a segment's first neuron run once for all timesteps.
    * With ``bits`` (8, 16 or 24), linear layers that read spikes multiply integers for many rows, and weights are rounded to so
      many bits: by 4·10⁻³, 1.6·10⁻⁵ or 6·10⁻⁸ of the largest of their output. It costs 4 bytes more of memory for each weight
      with 16 bits, and what is no number becomes one.

    Convolutions, quantized layers, attention that spikes, models on a GPU and layers in training stay as they are. Weights may
    change inside, neurons may not. It holds for the calls of all threads, and begins and ends when none runs; contexts inside
    one another are one. Raises `FasError` for a model without sites, or with ``bits`` and a grid of more than 127 levels, and
    `ConfigError` for other ``bits``, or than those of a context that is on.
    """
    model_from(model, "fas.accelerated", nn.Module)
    refuse_bits(model, bits)
    clock = clock_of(model)
    with clock.changing("fas.accelerated"):
        if clock.shared is None:
            follow(model)
            clock.shared = _Shared(bits, _installed(model, bits, clock))
        elif clock.shared.bits != bits:
            raise ConfigError(
                f"fas.accelerated is on already for this model, with bits={clock.shared.bits}; leave that context before one "
                f"with bits={bits}"
            )
        clock.shared.uses += 1
    try:
        yield model
    finally:
        with clock.changing("leaving fas.accelerated", waits=True):
            clock.shared.uses -= 1
            if not clock.shared.uses:
                shared, clock.shared = clock.shared, None
                shared.undo.close()


@dataclass
class _Shared:
    """What the first context of a model has installed, and the last one undoes."""

    bits: int
    undo: ExitStack
    uses: int = 0


def _installed(model: nn.Module, bits: int, clock: Clock) -> ExitStack:
    with ExitStack() as stack:
        stack.callback(setattr, clock, "frozen", None)
        clock.frozen = {}
        for module, site, folded in _linear(model):
            if folded and not isinstance(module, Conv1D):
                stack.enter_context(_side_by_side(module))
            stack.callback(module.__dict__.pop, "forward", None)
            module.forward = Product(module, site, bits, clock)  # type: ignore[method-assign]
        stack.enter_context(attention_in_place(model))
        return stack.pop_all()


def integer_paths(model: nn.Module) -> str:
    """Which paths integer products of an accelerated ``model`` have taken so far, by name (`fas.runtime.integer_products`)."""
    products = [module.__dict__.get("forward") for module in model.modules()]
    packed = [entry for product in products if isinstance(product, Product) for entry in product.packed.values()]
    return ", ".join(sorted({entry.path.name for entry in packed})) or "none"


def refuse_bits(model: nn.Module, bits: int) -> None:
    """Raise `ConfigError` for ``bits`` that weights cannot have, and `FasError` where spikes of ``model`` are too large."""
    if bits not in BITS:
        raise ConfigError(f"bits={bits} of a weight are not valid: choose 8, 16, 24, or 0 for weights as they are")
    if bits and (levels := clock_of(model).config.levels) > CODES:
        raise FasError(f"integer products take up to {CODES} levels, and this model has {levels}")


def _linear(model: nn.Module) -> Iterator[tuple[nn.Module, Site | None, bool]]:
    """Linear layers, the site that each reads, and whether it runs in folded time."""
    folded = {id(module) for segment in find_segments(model) for module in segment.module.modules()}
    for module in model.modules():
        if not is_plain(module) or "forward" in module.__dict__:
            continue
        hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SiteHook)]
        if len(hooks) <= 1:
            yield module, hooks[0].site if hooks else None, id(module) in folded


@contextmanager
def _side_by_side(module: Any) -> Iterator[None]:
    """The weights of an input stand side by side in memory inside; the parameter, its shape and values stay."""
    if module.weight.device.type != "cpu":
        yield
        return
    module.weight.data = by_input(module).detach().contiguous().T
    try:
        yield
    finally:
        module.weight.data = module.weight.data.contiguous()
