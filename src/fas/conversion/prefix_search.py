"""The search for a prefix: the tokens in front of every sequence that take massive activations over.

Greedy, on calibration data: of the tokens that stand out most often, the one is added with which the quantized model should be
best. What counts is the ANN's loss with the prefix, and one nat for each unit of relative rounding error at the sites where
tokens stand out (measured on SmolLM2-135M: docs/log.md, 2026-11-30).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion.massive import NOTABLE, MassiveReport, measure_massive
from fas.conversion.scales import Samples, mmse_scale, weight_power
from fas.models import Placement, Segment
from fas.neurons import qcfs
from fas.neurons.rotation import rotate
from fas.progress import Progress, Silent, counted
from fas.runtime.prefix import add_prefix, fill_prefix, prefix_states, remove_prefix

MOST_TOKENS = 4
CANDIDATES = 4
"""Tokens that are tried for each place."""
TEXT = 2048
"""Tokens of text that a prefix is judged on."""
WORDS = frozenset({"input_ids", "attention_mask", "labels"})
GAIN = 0.002
"""Nats a token that one more token of the prefix has to be worth."""


@dataclass(frozen=True)
class PrefixSearch:
    """What was found: the ranges without a prefix, and with it."""

    tokens: tuple[int, ...]
    before: MassiveReport
    after: MassiveReport
    noise: list[float] = field(default_factory=list)
    """Relative rounding error of all sites where tokens stand out: without a prefix, and with each token more."""


def find_prefix(
    model: PreTrainedModel,
    segment: Segment,
    placements: Sequence[Placement],
    batches: Sequence[Mapping[str, Any]],
    config: SpikingConfig,
    progress: Progress | None = None,
) -> PrefixSearch:
    """Search a prefix for the decoder ``segment`` of the ANN ``model``; no tokens where nothing is massive.

    Args:
        model: The ANN, without a prefix; it is left as it was.
        segment: Its decoder.
        placements: The sites of the segment.
        batches: Calibration data, keyword arguments of the model with ``input_ids`` ``[B, S]``.
        config: Levels and rotation, which decide how well values are rounded.
        progress: Who is told what is found.
    """
    progress, some = progress or Silent(), _first_tokens(batches)
    if not some or not any(place.spec.kind == "input" for place in placements):
        nothing = MassiveReport([], Counter(), 0.0)
        return PrefixSearch((), nothing, nothing)
    before = best = measure_massive(model, placements, counted(some, progress, "Looking for massive activations"))
    if not before.is_massive:
        return PrefixSearch((), before, before)
    worst = before.worst
    progress.note(f"massive activations: {worst.ratio:.0f} times the median at {worst.name}; a prefix is looked for")
    judge = _Judge(model, segment, placements, some, config, before)
    most = 1 + MOST_TOKENS * (CANDIDATES + 1)
    progress.start(f"Search for a prefix of up to {MOST_TOKENS} tokens, at most {most} tries", most)

    def tried(tokens: tuple[int, ...]) -> tuple[MassiveReport, float]:
        report, error = judge(tokens)
        progress.advance(1, f"tokens {tokens}: largest {report.worst.ratio:.0f} times the median")
        return report, error

    tokens: tuple[int, ...] = ()
    noise = [tried(tokens)[1]]
    least = before.loss + noise[0]
    while len(tokens) < MOST_TOKENS:
        found = {token: tried((*tokens, token)) for token in judge.candidates(best)}
        known = {token: report.loss + error for token, (report, error) in found.items()}
        scores = {token: score for token, score in known.items() if math.isfinite(score)}
        token = min(scores, key=lambda token: scores[token], default=None)
        if token is None or scores[token] > least - GAIN:
            break
        tokens, least, best = (*tokens, token), scores[token], found[token][0]
        noise.append(found[token][1])
    progress.done(f"prefix of {len(tokens)} tokens: largest value {best.worst.ratio:.0f} times the median")
    return PrefixSearch(tokens, before, best, noise)


class _Judge:
    """Ranges and rounding error of the model with a prefix."""

    def __init__(
        self,
        model: PreTrainedModel,
        segment: Segment,
        placements: Sequence[Placement],
        batches: Sequence[Mapping[str, Any]],
        config: SpikingConfig,
        before: MassiveReport,
    ) -> None:
        self.model, self.segment, self.batches, self.config = model, segment, batches, config
        self.placements = [place for place in placements if place.spec.kind == "input"]
        notable = {site.name for site in before.sites if site.ratio > NOTABLE}
        self.notable = [place for place in self.placements if place.name in notable]
        self.start = getattr(model.config.get_text_config(), "bos_token_id", None)

    def candidates(self, report: MassiveReport) -> list[int]:
        """Tokens that stand out most often, and the one that texts begin with."""
        listed = [token for token, _ in report.tokens.most_common(CANDIDATES)]
        return list(dict.fromkeys([*listed, *([self.start] if isinstance(self.start, int) else [])]))

    def __call__(self, tokens: tuple[int, ...]) -> tuple[MassiveReport, float]:
        found = [_Keep(place, self.config) for place in self.notable]
        with ExitStack() as stack:
            if tokens:
                give_prefix(self.model, self.segment, tokens)
                stack.callback(remove_prefix, self.segment)
            for keep in found:
                stack.callback(keep.place.consumers[0].register_forward_pre_hook(keep).remove)
            report = measure_massive(self.model, self.placements, self.batches)
        return report, sum(_rounding_error(keep, self.config) for keep in found)


class _Keep:
    """Forward pre-hook of a reader: keeps all rows that it is given, rotated as its site will see them, and how strongly the
    readers weigh each channel (their weights may be in memory only now)."""

    def __init__(self, place: Placement, config: SpikingConfig) -> None:
        self.place, self.samples, self.rotation = place, Samples(), place.rotation(config)
        self.power: Tensor | None = None

    def __call__(self, module: Any, args: tuple[Tensor, ...]) -> None:
        rows = rotate(args[0].detach().float(), self.rotation).flatten(0, -2).cpu()
        self.samples.inputs.append(rows)
        self.samples.targets.append(rows)
        if self.power is None:
            self.power = weight_power(self.place.consumers).cpu()


@torch.no_grad()
def _rounding_error(keep: _Keep, config: SpikingConfig) -> float:
    """Squared error of the site's grid, as its readers weigh it, relative to the power of each token: the mean over tokens."""
    x = torch.cat(keep.samples.inputs)
    scale = mmse_scale(
        keep.samples, config.levels, signed=True
    )  # also where an unsigned unit will stand in for an activation
    assert keep.power is not None
    error, power = ((qcfs(x, scale, config.levels, True) - x).square() @ keep.power), x.square() @ keep.power
    return float((error / power.clamp(min=1e-30)).mean())


def give_prefix(model: PreTrainedModel, segment: Segment, tokens: Sequence[int]) -> None:
    """Compute the constants of ``tokens`` with the ANN ``model`` and put them in front of every sequence of ``segment``."""
    states = prefix_states(segment, tokens)
    shapes = {number: (key.shape[0], key.shape[2], value.shape[2]) for number, (key, value) in states.items()}
    add_prefix(segment, len(tokens), shapes, model.dtype)
    fill_prefix(segment, states)


def _first_tokens(batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first sequences of ``batches``, about `TEXT` tokens (whole batches with images); none where they hold no words."""
    found: list[dict[str, Any]] = []
    held = 0
    for batch in batches:
        if "input_ids" not in batch or held >= TEXT:
            break
        length = batch["input_ids"].shape[1]
        rows = len(batch["input_ids"])
        if not set(batch) - WORDS:  # images may be packed, so that their tensors cannot be cut
            rows = min(rows, -(-(TEXT - held) // length))
        found.append({name: value[:rows] if name in WORDS else value for name, value in batch.items()})
        held += rows * length
    return found
