"""Massive activations: which tokens carry them, at which sites, and the prefix that takes them over.

A token is massive at a site if its largest value is many times the largest value of the median token there. A few tokens of
any text are (the first one, a line break, " the"), and one of them decides the threshold of its channel for all others.
The prefix is found greedily on calibration data: of the tokens that are massive most often, the one is added that leaves the
narrowest ranges at all sites, as long as the language model does not get worse by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.models import Placement, Segment
from fas.progress import Progress, Silent
from fas.runtime.control import without_cache
from fas.runtime.prefix import add_prefix, fill_prefix, prefix_states, remove_prefix

MASSIVE = 64.0
"""Times the median token's largest value, from which on a model has massive activations (PrefixQuant)."""
NOTABLE = 10.0
"""The same, for a token to be a candidate of the prefix."""
MOST_TOKENS = 4
CANDIDATES = 4
TEXT = 2048
"""Tokens that a prefix is judged on."""
WORSE = 0.005
"""Nats a token that a prefix may cost the ANN."""


@dataclass(frozen=True)
class SiteRange:
    """What one site is given: the largest value of the most massive token, and of the median token."""

    name: str
    largest: float
    median: float
    token: int
    """The id of the most massive token."""
    first: bool
    """Whether it is the first one of its sequence."""

    @property
    def ratio(self) -> float:
        return self.largest / self.median if self.median > 0 else 0.0


@dataclass(frozen=True)
class MassiveReport:
    """The ranges of all sites on some text, and how narrow they are."""

    sites: list[SiteRange]
    tokens: Counter[int]
    """How often each token stands out at a site (by `NOTABLE`)."""
    spread: float
    """Mean over sites of log(mean of the channels' largest squares / mean square): 1 more is e times the rounding noise."""
    loss: float
    """Nats a token of the ANN."""

    @property
    def worst(self) -> SiteRange:
        return max(self.sites, key=lambda site: site.ratio)

    @property
    def is_massive(self) -> bool:
        """Whether some token needs a prefix."""
        return bool(self.sites) and self.worst.ratio > MASSIVE


class _Ranges:
    """Forward pre-hook of the first consumer of a site: keeps the largest value of each token and each channel."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.by_token: list[Tensor] = []
        self.by_channel: Tensor | None = None
        self.power = 0.0
        self.count = 0

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().float()
        magnitude = x.abs()
        self.by_token.append(magnitude.amax(-1).cpu())
        channels = magnitude.flatten(0, -2).amax(0)
        self.by_channel = channels if self.by_channel is None else torch.maximum(self.by_channel, channels)
        self.power += float(x.square().sum())
        self.count += x.numel()

    def log_spread(self) -> float:
        assert self.by_channel is not None
        mean = self.power / max(1, self.count)
        return float((self.by_channel.double().square().mean() / max(mean, 1e-30)).clamp(min=1e-30).log())


@torch.no_grad()
def measure_massive(
    model: PreTrainedModel, placements: Sequence[Placement], batches: Iterable[Mapping[str, Any]]
) -> MassiveReport:
    """The largest values of the inputs of linear layers in the ANN ``model`` (as it is, with a prefix if it has one).

    ``batches`` are keyword arguments of the model with ``input_ids`` ``[B, S]``; padding does not count.
    """
    hooks = [(place, _Ranges(place.name)) for place in placements if place.spec.kind == "input"]
    handles = [place.consumers[0].register_forward_pre_hook(hook) for place, hook in hooks]
    training, ids, seen, losses = model.training, [], [], []
    model.eval()
    try:
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            logits = model(**inputs, **without_cache(model)).logits
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
            losses.append(_loss(logits, inputs["input_ids"], mask))
            ids.append(inputs["input_ids"].cpu().flatten())
            seen.append(_kinds(mask.cpu()).flatten())
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    tokens, kinds = torch.cat(ids), torch.cat(seen)
    ranges = [hook for _, hook in hooks if sum(map(Tensor.numel, hook.by_token)) == len(tokens)]
    counts: Counter[int] = Counter()
    sites = [_range_of(hook, tokens, kinds, counts) for hook in ranges]
    spread = sum(hook.log_spread() for hook in ranges) / max(1, len(ranges))
    return MassiveReport(sites, counts, spread, sum(losses) / max(1, len(losses)))


def _kinds(mask: Tensor) -> Tensor:
    """0 for padding, 2 for the first token of a sequence, 1 for all others: ``[B, S]``."""
    real = mask.bool()
    return real.long() + (real & (real.cumsum(-1) == 1)).long()


def _loss(logits: Tensor, ids: Tensor, mask: Tensor) -> float:
    counted = mask[:, 1:].bool()
    nll = nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return float(nll[counted.flatten()].mean())


def _range_of(hook: _Ranges, tokens: Tensor, kinds: Tensor, counts: Counter[int]) -> SiteRange:
    largest = torch.cat([values.flatten() for values in hook.by_token])
    largest = torch.where(kinds > 0, largest, 0)
    median = float(largest[kinds > 0].median())
    place = int(largest.argmax())
    counts.update(tokens[(largest > NOTABLE * median) & (kinds == 1)].tolist())
    return SiteRange(hook.name, float(largest[place]), median, int(tokens[place]), bool(kinds[place] == 2))


def find_prefix(
    model: PreTrainedModel,
    segment: Segment,
    placements: Sequence[Placement],
    batches: Sequence[Mapping[str, Any]],
    progress: Progress | None = None,
) -> tuple[int, ...]:
    """The tokens of the prefix that ``segment`` of the ANN ``model`` needs on ``batches``; () where nothing is massive."""
    progress = progress or Silent()
    some = _first_tokens(batches)
    best = measure_massive(model, placements, some)
    if not best.is_massive:
        return ()
    progress.note(
        f"massive activations: {best.worst.ratio:.0f} times the median at {best.worst.name}; looking for a prefix"
    )
    limit, prefix = best.loss + WORSE, ()
    start = getattr(model.config.get_text_config(), "bos_token_id", None)
    while len(prefix) < MOST_TOKENS:
        listed = [token for token, _ in best.tokens.most_common(CANDIDATES)]
        listed += [] if start is None or start in (*prefix, *listed) else [start]
        found = {token: _measured(model, segment, placements, some, (*prefix, token)) for token in listed}
        fitting = {token: report for token, report in found.items() if report.loss <= limit}
        token = min(fitting, key=lambda token: fitting[token].spread, default=None)
        if token is None or fitting[token].spread >= best.spread - 0.01:
            break
        prefix, best = (*prefix, token), fitting[token]
    return prefix


def _measured(
    model: PreTrainedModel,
    segment: Segment,
    placements: Sequence[Placement],
    batches: Sequence[Mapping[str, Any]],
    prefix: tuple[int, ...],
) -> MassiveReport:
    give_prefix(model, segment, prefix)
    try:
        return measure_massive(model, placements, batches)
    finally:
        remove_prefix(segment)


def give_prefix(model: PreTrainedModel, segment: Segment, tokens: Sequence[int]) -> None:
    """Compute the constants of ``tokens`` with the ANN ``model`` and put them in front of every sequence of ``segment``."""
    states = prefix_states(segment, tokens)
    shapes = {number: (key.shape[0], key.shape[2], value.shape[2]) for number, (key, value) in states.items()}
    add_prefix(segment, len(tokens), shapes, model.dtype)
    fill_prefix(segment, states)


def _first_tokens(batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first sequences of ``batches``, about `TEXT` tokens."""
    found: list[dict[str, Any]] = []
    held = 0
    for batch in batches:
        if "input_ids" not in batch or held >= TEXT:
            break
        length = batch["input_ids"].shape[1]
        rows = min(len(batch["input_ids"]), -(-(TEXT - held) // length))
        found.append({name: value[:rows] for name, value in batch.items()})
        held += rows * length
    return found
