"""The forward of one linear layer that is given spikes, on a CPU: integers for many rows, only what fires for few.

*Many rows.* What a site hands on are whole multiples of a unit. With codes a (at most 127 of either sign) and the weights of an
output n, unit folded in, as integers q = 256·h + l of the step s_n = max_k |w_nk·unit_k| / 32512 (16 bits),

    y_n = s_n·(256·Σ_k h_nk·a_k + Σ_k l_nk·a_k) + bias_n

both sums exactly, by the 8-bit products that processors have, or else in fp32 (`fas.runtime.integer_products`). Only the
weights are rounded: with 8, 16, 24 bits by at most 4·10⁻³, 1.6·10⁻⁵, 6·10⁻⁸ of the largest of their row (docs/speed.md).

*Few rows* (a token being written, in all its timesteps): the weights of an input are read where its neuron fired in some
timestep, once for all of them. Where more of them fire than makes that worth while, a dense product runs; what decides does not
depend on the clock, so that the same seed writes the same text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fas.neurons import Clock, Site
from fas.neurons.native import kernels
from fas.neurons.native.decoding import Dense, Gather, Weights, active, is_wide
from fas.runtime.integer_products import Path
from fas.runtime.product_probe import path_for

CODES, ROUNDED_CODES = 127, 31
"""The largest multiples of a unit, in float32 and, with room for a constant beside it, in bfloat16."""
FEW = 32
"""Rows up to which weights are rather skipped than multiplied densely."""
WORTH = 0.5
"""The share of inputs that may fire where vectors are short; with AVX-512 ours is the faster one if all do (docs/log.md)."""
SINGLE = 2
"""Rows up to which ours is the faster one with weights by output, with AVX-512."""


class Product:
    """The forward of one linear layer. ``site`` encodes what it reads (None: analog); ``bits`` of the weights, 0: as they are.

    Weights are packed when first needed, once for each worth of a spike, and anew when they have changed.
    """

    def __init__(self, module: nn.Module, site: Site | None, bits: int, clock: Clock) -> None:
        self.module, self.site, self.bits, self.clock = module, site, bits, clock
        self.packed: dict[Any, _Whole] = {}
        self.few: dict[Any, _Few] = {}
        self.axis = 0 if isinstance(module, Conv1D) else 1
        self.time: tuple[Any, Any] = (None, (0,))

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not kernels.takes(x) or not self._fits(x):
            return type(self.module).forward(self.module, x)
        if (rows := x.numel() // x.shape[-1]) <= FEW:
            return self._few()(x, rows)
        if self.bits and self._whole(x.dtype) and (path := path_for(self._most(), x.shape[-1], self.bits // 8)):
            return self._integers(x, path)
        clock, forward = self.clock, type(self.module).forward
        timesteps = clock.config.timesteps if clock.folds and clock.still else 1
        if timesteps == 1 or len(x) % timesteps:
            return forward(self.module, x)
        once = forward(self.module, x[: len(x) // timesteps])  # in front of the first neuron all timesteps are alike
        return once.repeat(timesteps, *[1] * (once.ndim - 1))

    def _fits(self, x: Tensor) -> bool:
        """Whether the layer could read ``x``: weights of its dtype beside it, inputs as many."""
        weight, bias = _parameters_of(self.module)
        same = weight.dtype is x.dtype and weight.is_cpu and (bias is None or bias.is_cpu)
        return same and x.shape[-1] == weight.shape[self.axis]

    def _whole(self, dtype: torch.dtype) -> bool:
        """Whether operands are whole multiples of a unit, few enough for a byte, or for the digits of bfloat16."""
        if self.site is None or not self.site.calibrates or self.clock.stage != "snn" or self.clock.neuron is not None:
            return False
        return self._most() <= (CODES if dtype == torch.float32 else ROUNDED_CODES)

    def _most(self) -> int:
        """The largest multiple of a unit: counts of rate coding reach T, not L."""
        config = self.clock.config
        return config.timesteps if config.coding == "rate" and self.clock.folds else config.levels

    def _integers(self, x: Tensor, path: Path) -> Tensor:
        assert self.site is not None
        packed = self._fresh(self.packed, lambda: _Whole(self.module, self.site, self.bits // 8, path), path)  # type: ignore[arg-type]
        rows = x if packed.constant is None else x.float() - packed.constant
        if packed.times > 1:  # a mean over t timesteps: t times as much is whole
            rows = self.site.over_time(rows.float()).flatten(1, -2) * _times(packed.times)
        sums = packed.product(kernels.count(rows, packed.unit, path.offset).flatten(0, -2))
        if packed.times > 1:
            sums = sums.view(packed.times, -1, sums.shape[-1]).div_(_times(packed.times))
        sums = sums.view(*x.shape[:-1], -1)
        return (sums if packed.bias is None else sums.add_(packed.bias)).to(x.dtype)

    def _few(self) -> _Few:
        return self._fresh(self.few, lambda: _Few(self.module, self.site, self.bits))  # type: ignore[no-any-return]

    def _fresh(self, kept: dict[Any, Any], make: Callable[[], Any], path: Path | None = None) -> Any:
        """What was packed for the present configuration, weight and path."""
        parameters = _parameters_of(self.module)
        known, clock = self.time, self.clock
        if self.site is not None and (clock.config is not known[0] or clock.rewritten != known[1][0]):
            time = clock.rewritten, clock.config.neuron_key, clock.config.schedule
            known = self.time = clock.config, time  # at once: others may be reading
        found = kept.get(known[1])
        if found is None or found.path is not path or not found.state.holds(*parameters):
            found = kept[known[1]] = make()
        return found


def _parameters_of(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, past the slow look-up of modules where they are plain parameters."""
    found: Any = module._parameters
    weight = found.get("weight")
    bias: Any = found["bias"] if "bias" in found else module.bias
    own: Any = module.weight if weight is None else weight
    return own, bias


class _State:
    """Which values the parameters of a layer had when they were packed."""

    def __init__(self, module: nn.Module) -> None:
        self.weight, self.bias = weight, bias = _parameters_of(module)
        self.version, self.place = weight._version, weight.data_ptr()
        self.bias_version, self.bias_place = (0, 0) if bias is None else (bias._version, bias.data_ptr())

    def holds(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether they still have them: they are the same, were not written to, and have no other memory (``.data``)."""
        if weight is not self.weight or weight._version != self.version or weight.data_ptr() != self.place:
            return False
        if bias is None or bias is not self.bias:
            return bias is self.bias
        return bias._version == self.bias_version and bias.data_ptr() == self.bias_place


class _Few:
    """Few rows: only inputs that are not silent."""

    def __init__(self, module: nn.Module, site: Site | None, bits: int) -> None:
        self.module, self.state, self.path = module, _State(module), None
        rows, bias = by_input(module), None if module.bias is None else module.bias.detach().float()
        base = None if site is None or not site.clock.folds else site.constant_for(site.clock.config)
        if base is not None:
            base = base.detach().float().contiguous()
            bias = (base.double() @ rows.double()).float() + (0 if bias is None else bias)
        self.base, wide = base, is_wide()
        self.share, self.rows = (1.0 if wide else WORTH), (SINGLE if wide else 0)
        if site is None and not rows.is_contiguous():
            self.run: Gather | Dense = Dense(module.weight.detach().contiguous(), bias)
            return
        weights = Weights(rows.contiguous(), bias, base=base)
        if site is not None and (bits == 8 or (bits == 16 and rows.dtype == torch.float32)):
            weights = _rounded(weights, site.scale.detach(), bits)
        self.run = Gather(weights)

    def __call__(self, x: Tensor, rows: int) -> Tensor:
        if isinstance(self.run, Dense):
            ours = rows <= self.rows
        else:
            ours = self.share == 1 or active(x.flatten(0, -2), self.base) <= self.share * x.shape[-1]
        return self.run(x) if ours else type(self.module).forward(self.module, x)


def by_input(module: nn.Module) -> Tensor:
    """The weight ``[K, N]`` of a linear layer; a view."""
    weight = module.weight.detach()
    return weight if isinstance(module, Conv1D) else weight.T


def _rounded(weights: Weights, unit: Tensor, bits: int) -> Weights:
    scaled = weights.rows.double() * unit.double().unsqueeze(1)
    step = scaled.abs().amax(0).clamp(min=1e-30) / (127 if bits == 8 else 127 * 256)
    rows = (scaled / step).round().to(torch.int8 if bits == 8 else torch.int16)
    return weights._replace(rows=rows.contiguous(), step=step.float(), unit=unit.float().contiguous())


class _Whole:
    """Weights ``[N, K]`` with the unit of each input folded in, as whole numbers of ``size`` bytes."""

    def __init__(self, module: nn.Module, site: Site, size: int, path: Path) -> None:
        self.state, self.path = _State(module), path
        self.unit, self.constant, self.times = unit, constant, _ = _worth(site)
        self.unit = self.unit.contiguous()
        weight = by_input(module).T.double()
        scaled = weight * unit.double()
        steps = scaled.abs().amax(1).clamp(min=1e-30) / (127 * 256 ** (size - 1))
        self.product = path.pack((scaled / steps.unsqueeze(1)).round(), steps, size, path.offset)
        bias = None if module.bias is None else module.bias.detach().double()
        if constant is not None:
            bias = weight @ constant.double() + (0 if bias is None else bias)
        self.bias = None if bias is None else bias.float()


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


def _times(timesteps: int) -> Tensor:
    return torch.arange(1, timesteps + 1, dtype=torch.float32).view(-1, 1, 1)
