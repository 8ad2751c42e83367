"""Massive activations: which tokens carry them, and at which sites.

A token is massive at a site if its largest value is many times the largest value of the median token there. A few tokens of
any text are (the first one, a line break, " the"), and one of them decides the threshold of its channel for all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.models import Placement
from fas.runtime.control import without_cache

MASSIVE = 64.0
"""Times the median token's largest value, from which on a model has massive activations (PrefixQuant, arXiv 2410.05265)."""
NOTABLE = 10.0
"""The same, for a token to stand out at a site."""


@dataclass(frozen=True)
class SiteRange:
    """The largest value that one site is given, and that of the median token."""

    name: str
    largest: float
    median: float
    token: int
    """The id of the token with the largest value."""
    first: bool
    """Whether it is the first one of its sequence."""

    @property
    def ratio(self) -> float:
        return self.largest / self.median if self.median > 0 else 0.0


@dataclass(frozen=True)
class MassiveReport:
    """The ranges of all sites on some text."""

    sites: list[SiteRange]
    tokens: Counter[int]
    """How often each token stands out at a site (by `NOTABLE`), where it is not the first of its sequence."""
    loss: float
    """Nats a token of the language model (0 for another head)."""

    @property
    def worst(self) -> SiteRange:
        return max(self.sites, key=lambda site: site.ratio)

    @property
    def is_massive(self) -> bool:
        """Whether some token is massive."""
        return bool(self.sites) and self.worst.ratio > MASSIVE

    def most(self, count: int) -> list[SiteRange]:
        """The ``count`` sites with the largest ratio."""
        return sorted(self.sites, key=lambda site: -site.ratio)[:count]


class _Ranges:
    """Forward pre-hook of the first reader of a site: keeps the largest value of each token."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.largest: list[Tensor] = []

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.largest.append(args[0].detach().abs().amax(-1).float().flatten().cpu())


@torch.no_grad()
def measure_massive(
    model: PreTrainedModel, placements: Sequence[Placement], batches: Iterable[Mapping[str, Any]]
) -> MassiveReport:
    """The largest values of the inputs of linear layers in the ANN ``model`` (as it is, with a prefix if it has one).

    ``batches`` are keyword arguments of the model with ``input_ids`` ``[B, S]``; padding does not count.
    """
    hooks = [(place, _Ranges(place.name)) for place in placements if place.spec.kind == "input"]
    handles = [place.consumers[0].register_forward_pre_hook(hook) for place, hook in hooks]
    training, ids, kinds, losses = model.training, [], [], []
    model.eval()
    try:
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            output = model(**inputs, **without_cache(model))
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
            losses.append(_loss(output, inputs["input_ids"], mask))
            ids.append(inputs["input_ids"].cpu().flatten())
            kinds.append(_kinds(mask.cpu()).flatten())
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    counts: Counter[int] = Counter()
    tokens, kind = torch.cat(ids), torch.cat(kinds)
    # towers of another length see no words
    ranges = [hook for _, hook in hooks if sum(map(Tensor.numel, hook.largest)) == len(tokens)]
    sites = [_range_of(hook, tokens, kind, counts) for hook in ranges]
    return MassiveReport(sites, counts, sum(losses) / len(losses))


def _kinds(mask: Tensor) -> Tensor:
    """0 for padding, 2 for the first token of a sequence, 1 for all others: ``[B, S]``."""
    real = mask.bool()
    return real.long() + (real & (real.cumsum(-1) == 1)).long()


def _loss(output: Any, ids: Tensor, mask: Tensor) -> float:
    """Nats a token of the next one; 0 where the model has no head that says it (a classifier, an inner model)."""
    logits = output.get("logits")
    if logits is None or logits.shape[:2] != ids.shape:
        return 0.0
    counted = mask[:, 1:].bool()
    nll = nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return float(nll[counted.flatten()].mean())


def _range_of(hook: _Ranges, tokens: Tensor, kinds: Tensor, counts: Counter[int]) -> SiteRange:
    largest = torch.where(kinds > 0, torch.cat(hook.largest), 0)
    median = float(largest[kinds > 0].median())
    place = int(largest.argmax())
    counts.update(tokens[(largest > NOTABLE * median) & (kinds == 1)].tolist())
    return SiteRange(hook.name, float(largest[place]), median, int(tokens[place]), bool(kinds[place] == 2))
