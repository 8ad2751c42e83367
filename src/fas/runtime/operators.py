"""Hooks that let groups of neurons compute the norms and activations of a segment, and encode the factors of its products.

Each is a forward hook that gives another output: the module stays, with its weights, and its own output is dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fas.models.functions import Norm, epsilon, norm_of
from fas.offloading import at_hand
from fas.operators import activation, rms_norm
from fas.operators.group import wide
from fas.runtime.hooks import Hook


def sites_on(module: nn.Module) -> Any:
    """What a conversion put on ``module``, by role; empty for any other module."""
    return module._modules.get("sites") or {}


def centered(module: nn.Module, x: Tensor) -> Tensor:
    """What a norm scales: ``x`` ``[…, C]`` itself, or (LayerNorm) without its mean; in fp32 or wider."""
    x, norm = wide(x), norm_of(module)
    return x - x.mean(-1, keepdim=True) if norm is not None and norm.centered else x


def octave(x: Tensor) -> Tensor:
    """The power of two below the mean |x| of each token, ``[…, 1]`` (1 for a token of zeros): sums and exponents, no product.

    A norm gives the same for x and x/octave, but neurons that hold image tokens would not tell words from nothing.
    """
    mean = x.detach().abs().mean(-1, keepdim=True)
    return torch.where(mean > torch.finfo(x.dtype).tiny, torch.frexp(mean).exponent.to(x.dtype).sub(1).exp2(), 1)


class NormHook(Hook):
    """y = x̂·(mean x̂² + ε)^{−½}·weight + bias: x̂ the encoded (centred) input, shifted by its `octave`, the root by a group."""

    def __init__(self, norm: Norm) -> None:
        self.norm = norm

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        sites, x = sites_on(module), centered(module, args[0])
        eps: Any = epsilon(module)
        if "input" in sites:
            shift = octave(x)
            x, eps = sites["input"](x / shift), eps / shift.square()
        weight, bias = at_hand(module, "weight"), at_hand(module, "bias")
        group = sites["rsqrt"] if "rsqrt" in sites else None
        normed = rms_norm(x, weight, eps, group, self.norm.offset)
        if bias is not None:
            normed = normed + bias.to(x.dtype)
        return normed.to(output.dtype).contiguous()  # some models view what they get


class ActivationHook(Hook):
    """The activation ``kind`` by its group."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return activation(args[0], sites_on(module)["activation"], self.kind).to(output.dtype)


class OutputHook(Hook):
    """Encodes what a module gives, or the second ``half`` of its channels."""

    def __init__(self, half: bool) -> None:
        self.half = half

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        site = sites_on(module)["output"]
        if not self.half:
            return site(output)
        first, second = output.chunk(2, dim=-1)
        return torch.cat([first, site(second)], dim=-1)
