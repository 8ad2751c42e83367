"""Softmax and norms made of groups (STA, ICLR 2024, with range reduction): sums, products of running values, three functions.

Each product has two running values as operands; on spikes it is the incremental product. All arithmetic is
in fp32 or wider and so are the results.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fas.operators.functions import exp2_negative, reciprocal, rsqrt
from fas.operators.group import Evaluation, wide


def softmax(scores: Tensor, exp_group: Evaluation, reciprocal_group: Evaluation, mask: Tensor | None = None) -> Tensor:
    """Softmax over the last axis of ``scores`` ``[…, K]``: e = 2^{−(max − x)·log₂e}, p = e·(1/Σe).

    ``mask`` is boolean (True takes part) or added to the scores, and broadcasts. A row without any key that takes part is 0;
    a masked key gives no spikes.
    """
    scores = wide(scores)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    # the maximum only chooses the shift, so no gradient belongs to it; a row of −∞ has none, and becomes 0
    top = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    exponentials = exp2_negative((top - scores) * math.log2(math.e), exp_group)
    return exponentials * reciprocal(exponentials.sum(-1, keepdim=True), reciprocal_group)


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float | Tensor, rsqrt_group: Evaluation | None, offset: float = 0
) -> Tensor:
    """RMSNorm of ``x`` ``[…, C]``: x·(mean x² + eps)^{−½}·(``offset`` + ``weight`` ``[C]``); offset 1 is Gemma's kind.

    Without a group the root is exact.
    """
    x = wide(x)
    power = x.square().mean(-1, keepdim=True) + eps
    normed = x * (power.rsqrt() if rsqrt_group is None else rsqrt(power, rsqrt_group))
    return normed if weight is None else normed * (weight.to(x.dtype) + offset)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, rsqrt_group: Evaluation) -> Tensor:
    """LayerNorm of ``x`` ``[…, C]`` over its last axis, ``weight`` and ``bias`` ``[C]``: the mean removed, then `rms_norm`."""
    x = wide(x)
    normed = rms_norm(x - x.mean(-1, keepdim=True), weight, eps, rsqrt_group)
    return normed if bias is None else normed + bias.to(x.dtype)
