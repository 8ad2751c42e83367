"""Products of spikes as integer products: what a site hands on are whole multiples of a unit, and weights become integers, too.

With codes a (at most 127 of either sign) and the weights of an output n, unit folded in, as integers q = 256·h + l of the step
s_n = max_k |w_nk·unit_k| / 32512 (16 bits),

    y_n = s_n·(256·Σ_k h_nk·a_k + Σ_k l_nk·a_k) + bias_n

both sums exactly, by the 8-bit products that processors have. Only the weights are rounded: with 8, 16, 24 bits by at most
4·10⁻³, 1.6·10⁻⁵, 6·10⁻⁸ of the largest of their row. A byte of weight is read where fp32 reads four (docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fas.errors import ConfigError, FasError
from fas.neurons import Site
from fas.neurons.native import kernels
from fas.runtime.control import clock_of
from fas.runtime.hooks import SiteHook

CODES = 127
FEW = 32
"""Rows up to which 16-bit products are faster than two 8-bit ones: the weights are read once, from memory."""
BITS = (8, 16, 24)


@contextmanager
def integer_products(model: nn.Module, bits: int = 16) -> Iterator[nn.Module]:
    """Inside, linear layers that read spikes multiply integers, on a CPU, in fp32, where no gradient is asked for; others, and
    convolutions and attention, stay as they are.

    Weights may change inside, neurons may not; what is no number becomes one. Raises `FasError` for a model without sites, or
    whose grid has more than 127 levels, and `ConfigError` for other ``bits``.
    """
    if bits not in BITS:
        raise ConfigError(f"bits={bits} of a weight are not valid: choose {', '.join(map(str, BITS))}")
    levels = clock_of(model).config.levels
    if levels > CODES:
        raise FasError(f"integer products take up to {CODES} levels, and this model has {levels}")
    clock = clock_of(model)
    with ExitStack() as stack:
        stack.callback(setattr, clock, "frozen", clock.frozen)
        clock.frozen = {}
        for module, site in _readers(model):
            product = _Product(module, site, bits)
            stack.callback(module.__dict__.pop, "forward", None)
            module.forward = product  # type: ignore[method-assign]
        yield model


def _readers(model: nn.Module) -> Iterator[tuple[nn.Module, Site]]:
    for module in model.modules():
        hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SiteHook)]
        if isinstance(module, nn.Linear | Conv1D) and len(hooks) == 1 and "forward" not in module.__dict__:
            yield module, hooks[0].site


class _Product:
    """The forward of one linear layer; weights are packed when first needed, once for each worth of a spike."""

    def __init__(self, module: nn.Module, site: Site, bits: int) -> None:
        self.module, self.site, self.bits = module, site, bits
        self.packed: dict[Any, _Packed] = {}
        self.config: Any = None
        self.time: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        site = self.site
        config = site.clock.config
        ordinary = site.clock.stage == "snn" and site.clock.neuron is None and site.calibrates
        if config.coding == "rate" and site.clock.folds and config.timesteps > CODES:  # counts reach T, not L
            ordinary = False
        if not ordinary or torch.is_grad_enabled() or x.dtype != torch.float32 or not kernels.takes(x):
            return type(self.module).forward(self.module, x)
        packed = self._packed()
        unit, constant, times = packed.unit, packed.constant, packed.times
        if packed.few is not None and constant is None and times == 1 and x.numel() <= FEW * x.shape[-1]:
            few = kernels.multiply(x.flatten(0, -2), unit, *packed.few, packed.bias)
            return few.view(*x.shape[:-1], -1)
        rows = x if constant is None else x - constant
        if times > 1:  # a mean over t timesteps: t times as much is whole
            rows = site.over_time(rows) * _times(times, x)
        sums = packed(kernels.count(rows, unit).flatten(0, -2))
        if times > 1:
            sums = sums.view(times, -1, sums.shape[-1]).div_(_times(times, sums))
        sums = sums.view(*x.shape[:-1], -1)
        return sums if packed.bias is None else sums.add_(packed.bias)

    def _packed(self) -> _Packed:
        """For the present configuration and weight."""
        config, weight = self.site.clock.config, self.module.weight
        if config is not self.config:
            self.config, self.time = config, (config.neuron_key, config.schedule)
        found = self.packed.get(self.time)
        if found is None or found.weight is not weight or found.version != weight._version:
            found = self.packed[self.time] = _Packed(self.module, self.site, self.bits // 8)
        return found


class _Packed:
    """Weights ``[N, K]`` with the unit of each input folded in, as digits of 8 bits, the highest first."""

    def __init__(self, module: nn.Module, site: Site, digits: int) -> None:
        self.weight, self.version = module.weight, module.weight._version
        self.unit, self.constant, self.times = unit, constant, _ = _worth(site)
        self.unit = self.unit.contiguous()
        weight = module.weight.detach()
        weight = (weight.T if isinstance(module, Conv1D) else weight).double()
        scaled = weight * unit.double()
        step = scaled.abs().amax(1).clamp(min=1e-30) / (127 * 256 ** (digits - 1))
        rest, self.digits = (scaled / step.unsqueeze(1)).round(), []
        self.few: tuple[Tensor, Tensor] | None = None
        if digits == 2 and kernels.multiplies():
            padded = nn.functional.pad(rest, (0, -rest.shape[1] % 32))
            self.few = padded.to(torch.int16).contiguous(), step.float()
        for place in range(digits):
            above = ((rest + 128) / 256).floor() if place + 1 < digits else torch.zeros_like(rest)
            digit = (rest - 256 * above).to(torch.int8)
            packed = torch.ops.onednn.qlinear_prepack(digit.contiguous(), None)
            self.digits.insert(0, (packed, (step * 256**place).float()))
            rest = above
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        bias = None if module.bias is None else module.bias.detach().double()
        if constant is not None:
            bias = weight @ constant.double() + (0 if bias is None else bias)
        self.bias = None if bias is None else bias.float()

    def __call__(self, codes: Tensor) -> Tensor:
        """``codes`` + 128 ``[M, K]`` of uint8 to products ``[M, N]``, without bias."""
        product, given = torch.ops.onednn.qlinear_pointwise, (codes, 1.0, 128)
        answer, nothing = (1.0, 0, torch.float32), ("none", [], "")
        (weight, worth), *lower = self.digits
        sums = product(*given, weight, worth, self.zeros, None, *answer, *nothing)
        for weight, worth in lower:
            added = (sums, None, *answer, 1.0, 0, "sum", 1.0)
            sums = product.binary(*given, weight, worth, self.zeros, *added, *nothing)
        return sums


def _worth(site: Site) -> tuple[Tensor, Tensor | None, int]:
    """Unit ``[C]``, the constant beside it, and T where rows are means of the timesteps so far (else 1)."""
    config = site.clock.config
    if not site.clock.folds:
        return site.scale.detach() / site.levels, None, 1
    threshold = site.neuron_values(config)[0].detach()
    constant = site.constant_for(config)
    if config.coding == "sigma_delta":
        return threshold / site.levels, constant, 1
    return threshold, constant, config.timesteps if config.rows == "mean" else 1


def _times(timesteps: int, like: Tensor) -> Tensor:
    return torch.arange(1, timesteps + 1, dtype=like.dtype).view(-1, *[1] * (like.ndim if like.ndim > 2 else 2))
