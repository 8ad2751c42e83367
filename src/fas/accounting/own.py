"""Spikes of a method's own neurons: what they are said to be worth is checked against what was handed on, and charged.

In time, each row is ``worth·s``; a layer that answers at once hands on ``Σ_t worth_t·s_t``, plus a constant of each token. A
spike of level n is charged as n accumulates, one whose worth changes over time with a shift more. Multiplications with worths
that are no powers of two are not charged, so that the energy of such methods is a lower bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fas.accounting.emission import Emission
from fas.neurons import Site


def own_emission(site: Site, emission: Emission, spikes: Tensor, worth: Tensor | None, rows: Tensor) -> bool:
    """Whether ``rows`` (``[T·B, …, C]``; layerwise ``[B, …, C]``) are what ``spikes`` ``[T, B, …, C]`` add up to by ``worth``;
    completes ``emission``."""
    if worth is None or not torch.equal(spikes, spikes.round()):
        return False
    said = spikes * worth
    if site.clock.folds:
        left = site.over_time(rows) - said
        if (constant := site.constant_for(site.clock.config)) is not None:
            left = left - constant
        allowed = said.abs()
    else:
        left, allowed = rows - said.sum(0), said.abs().sum(0)
        token = left.mean(-1, keepdim=True)
        emission.constant |= bool((token.abs() > 1e-4 * allowed.amax()).any())
        left, allowed = left - token, allowed + token.abs()
    if worth.ndim == spikes.ndim and len(worth) > 1:
        emission.shifted = int(spikes.abs().sum())
    precise = 1e-5 if rows.dtype == torch.float32 else 4 * torch.finfo(rows.dtype).eps
    return bool((left.abs() <= precise * (allowed + allowed.mean())).all())
