"""Spiking attention: query, key, value and probabilities are sites of the module that calls transformers' interface.

What spikes of the probabilities is e = exp(s − max s), which is 1 at its largest in every row; the sum of the *encoded* e
normalises behind the product with the values,

    o = (Σ_j ê_j v̂_j) / Σ_j ê_j

so the weights of a row add up to 1 whatever the grid, and one grid fits rows of any length and sharpness. A grid on the
normalised probabilities would not: where 128 keys share the attention, all of them round to 0 (docs/log.md).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from fas.errors import FasError
from fas.operators import activation, exp2_negative, reciprocal
from fas.operators.exponential import exp2_at_rest
from fas.operators.spiking import GroupSite
from fas.runtime.hooks import sites_on
from fas.runtime.prefix import with_prefix

NAME = "fas_spiking"

LOG2_E = math.log2(math.e)

PIECE = 1 << 20
"""Scores of which a probe hears at a time."""

# Arguments that change what attention computes; leaving one out would be silent nonsense.
_UNKNOWN = ("s_aux", "sinks")


def refuse_unknown(module: nn.Module, arguments: dict[str, Any]) -> None:
    """Raise `FasError` for an argument of the attention interface that spiking attention would have to ignore."""
    ignored = [name for name in _UNKNOWN if arguments.get(name) is not None]
    if ignored:
        raise FasError(f"{type(module).__name__} uses {ignored}, which FAS's attention does not compute")


def exponentials(
    scores: Tensor,
    attention_mask: Tensor | None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    groups: Any = (),
) -> tuple[Tensor, Tensor | None]:
    """e = exp(s − max s) of scaled scores ``[B, H, S, K]``, 0 where hidden; and which are visible ``[B, 1, S, K]``.

    ``attention_mask`` is additive, its dtype's least value hides. A token that sees nothing at all (padding) gets 0
    everywhere, as in ``scaled_dot_product_attention``. ``groups`` may hold one for ``exponential`` and for ``softcap``.
    """
    if softcap is not None and "softcap" in groups:
        scores = by_head(lambda x: activation(x, groups["softcap"], "tanh"), scores / softcap) * softcap
    elif softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if position_bias is not None:
        scores = scores + position_bias
    visible = None
    if attention_mask is not None:
        scores = scores + attention_mask
        visible = attention_mask > torch.finfo(attention_mask.dtype).min
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    # the maximum keeps its gradient: where the grid clips e = 1, nothing else tells the largest score of the others
    distance = wide.amax(-1, keepdim=True) - wide
    del scores, wide  # each of them is as large as what memory is needed for
    spikes = "exponential" in groups
    e = _exponential(distance.mul_(LOG2_E), groups["exponential"], visible) if spikes else distance.neg_().exp_()
    if visible is not None:
        e = e.masked_fill(~visible, 0) if e.requires_grad else e.masked_fill_(~visible, 0)
    return e, visible


def _exponential(u: Tensor, group: Any, visible: Tensor | None) -> Tensor:
    """2^{−u} ``[T·B, H, S, K]`` by ``group``: from its table where that is all (at rest, and nobody wants its spikes).

    Else at rest by some queries at a time, so that what it takes to reduce the range is small.
    """
    site = group.site
    if isinstance(site, GroupSite) and site.levels == 1 and site.rests() and site.clock.probe is None:
        return exp2_at_rest(u, group)
    if visible is not None and isinstance(site, GroupSite) and site.clock.folds:
        visible = visible[: u.shape[0] // site.clock.config.timesteps]
    seen = None if visible is None else visible.movedim(1, -1)  # [B, S, K, 1]
    queries = u.shape[2]

    def answers(some: slice) -> Tensor:
        part = None if seen is None else seen.expand(-1, queries, -1, -1)[:, some]
        return by_head(lambda x: exp2_negative(x, partial(group, visible=part)), u[:, :, some])

    if not (isinstance(site, GroupSite) and site.rests()) or u.numel() <= PIECE:
        return answers(slice(None))
    size = max(1, PIECE * queries // u.numel())
    return torch.cat([answers(slice(first, first + size)) for first in range(0, queries, size)], 2)


def spiking_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Transformers' contract: ``query`` ``[B, H, S, D]``, keys and values ``[B, Hkv, K, D]`` to ``[B, S, H, D]``.

    A module without sites computes the same in analog. Raises `FasError` for an argument that it would have to ignore.
    """
    refuse_unknown(module, kwargs)
    sites = sites_on(module)
    new = query.shape[2]
    query = by_channel(_encoding(sites, "query"), query)
    key = by_channel(_encoding(sites, "key", new), key)
    value = by_channel(_encoding(sites, "value", new), value)
    key, value, attention_mask = with_prefix(module, query, key, value, attention_mask)
    groups = query.shape[1] // key.shape[1]
    key, value = (entry.repeat_interleave(groups, dim=1) for entry in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # without a name here, the scores go when they have become distances
    e, visible = exponentials(
        (query @ key.transpose(-1, -2)).mul_(scale), attention_mask, softcap, position_bias, sites
    )
    e = by_head(_encoding(sites, "probabilities", visible=visible), e).to(value.dtype)
    share = normaliser(e, sites)
    kept = F.dropout(e, dropout, module.training)
    return (kept @ value * share).transpose(1, 2).contiguous(), e * share


def normaliser(e: Tensor, groups: Any = ()) -> Tensor:
    """1/Σ_j e_j ``[B, H, S, 1]`` in ``e``'s dtype, by the group for ``reciprocal`` if there is one; finite for a sum of 0."""
    total = e.sum(-1, keepdim=True)
    if "reciprocal" in groups:
        return by_head(lambda x: reciprocal(x, groups["reciprocal"]), total).to(e.dtype)
    return total.clamp(min=torch.finfo(e.dtype).tiny).reciprocal()


def by_head(encode: Any, x: Tensor) -> Tensor:
    """``encode`` applied to ``x`` ``[B, H, …]`` with the heads as channels."""
    return encode(x.movedim(1, -1)).movedim(-1, 1)


def by_channel(encode: Any, x: Tensor) -> Tensor:
    """``encode`` applied to ``x`` ``[B, Hkv, K, D]`` with every feature of every head as a channel."""
    heads = x.shape[1]
    return encode(x.transpose(1, 2).flatten(2)).unflatten(2, (heads, -1)).transpose(1, 2)


class _Encoding:
    """A site applied to one operand; without a site, the operand itself.

    ``new`` is how many tokens at the end are not from a cache: only those count as spikes, and where the cache keeps
    settled values the others hold their last value at every timestep.
    """

    def __init__(self, site: Any, new: int | None, visible: Tensor | None) -> None:
        self.site, self.new, self.visible = site, new, visible

    def __call__(self, x: Tensor) -> Tensor:
        if self.site is None:
            return x
        clock = self.site.clock
        visible = None if self.visible is None else self.visible.movedim(1, -1)
        if visible is not None and clock.folds:
            visible = visible[: x.shape[0] // clock.config.timesteps]  # the same at every timestep
        cross = getattr(self.site, "kind", None) == "cross"
        past = 0 if self.new is None or cross else x.shape[1] - self.new
        if past > 0:
            visible = (torch.arange(x.shape[1], device=x.device) >= past).view(1, -1, *[1] * (x.ndim - 2))
        out = self.site(x, visible)
        if past > 0 and clock.folds and clock.config.cache == "settled":
            timesteps = clock.config.timesteps
            last = out[-(out.shape[0] // timesteps) :, :past]
            out = torch.cat([last.repeat(timesteps, *[1] * (x.ndim - 1)), out[:, past:]], dim=1)
        return out


def _encoding(sites: Any, role: str, new: int | None = None, visible: Tensor | None = None) -> _Encoding:
    return _Encoding(sites[role] if role in sites else None, new, visible)


AttentionInterface.register(NAME, spiking_attention)
AttentionMaskInterface.register(NAME, eager_mask)  # without a mask function of its own, attention would see the future
