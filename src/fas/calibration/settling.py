"""Step schedules by depth, found with the whole network running.

Which order and size of moves lets a network settle depends on how many layers follow each other: what arrives late at a deep
layer has to be followed late. So schedules are not judged site by site but by the logits of the whole network: candidates of a
few shapes first for all sites, on little text, the best of them on more, and then for each group of layers by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.losses import comparable, logits_loss, logits_of
from fas.models import find_segments
from fas.neurons import NeuronParameters, Site
from fas.progress import Progress
from fas.runtime.control import as_qcfs, clock_of, without_cache
from fas.runtime.replay import blocks_of
from fas.steps import default_steps

BENDS = (0.7, 1.0, 1.5, 2.5)
"""How long a schedule holds its large steps: exponents fall as (share of time)^bend."""
FEW_TOKENS, MANY_TOKENS = 128, 512
FINALISTS = 5
GROUPS = 3
GAIN = 0.01
"""Share of the distance that a change has to take away, so that chance does not choose."""

Schedule = tuple[int, ...]


def schedules(levels: int, timesteps: int, neurons: int) -> list[Schedule]:
    """Candidates for P·T steps: falling powers of two of several shapes, P neurons of a timestep alike or each half as large.

    >>> schedules(7, 4, 1)[:3]
    [(4, 2, 1, 1), (4, 2, 2, 1), (4, 4, 2, 1)]
    """
    found = [default_steps(levels, timesteps * neurons)]
    top = max(0, round(math.log2(max(1, levels) / 2)))
    for first in (top, top - 1) if top > 1 else (top,):
        for last in (0, 1) if first > 1 else (0,):
            for bend in BENDS:
                exponents = [
                    max(last, round(first - (first - last) * (t / max(1, timesteps - 1)) ** bend))
                    for t in range(timesteps)
                ]
                for halves in (False, True) if neurons > 1 else (False,):
                    found.append(tuple(2 ** max(0, e - p * halves) for e in exponents for p in range(neurons)))
    return list(dict.fromkeys(found))


class _Judge:
    """KL(QCFS model ‖ SNN) on some tokens with the schedules that the sites have; infinity where it is no number."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Mapping[str, Any]]) -> None:
        self.model, self.batches = model, batches
        self.targets: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, tokens: int) -> float:
        inputs = _first(self.batches, tokens) | without_cache(self.model)
        if tokens not in self.targets:
            with as_qcfs(self.model):
                self.targets[tokens] = logits_of(self.model(**inputs))
        return comparable(float(logits_loss(logits_of(self.model(**inputs)), self.targets[tokens])))


def _first(batches: Sequence[Mapping[str, Any]], tokens: int) -> dict[str, Any]:
    """The first sequences of the first batch, cut so that there are about ``tokens`` tokens where they are words."""
    batch = dict(batches[0])
    ids = batch.get("input_ids")
    if set(batch) - {"input_ids", "attention_mask"} or not isinstance(ids, Tensor):
        return batch
    length = min(ids.shape[1], tokens)
    rows = max(1, tokens // length)
    return {name: value[:rows, :length] for name, value in batch.items()}


def settle(
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, Any]],
    progress: Progress,
    parameters: Sequence[NeuronParameters],
) -> None:
    """Give the ``parameters`` of all sites the schedules with which ``model`` comes closest to its QCFS model.

    Nothing changes where nothing is better by `GAIN`; no candidate is tried for rate coding.
    """
    config = clock_of(model).config
    if config.coding != "sigma_delta" or not parameters:
        return
    listed = schedules(config.levels, config.timesteps, config.neurons_per_channel)
    groups = _by_depth(model)
    judge, present = _Judge(model, batches), [entry.steps.clone() for entry in parameters]
    progress.start("Schedules by depth", len(listed) + FINALISTS + GROUPS * (FINALISTS - 1))
    scores = {}
    for steps in listed:
        _set(parameters, steps)
        scores[steps] = judge(FEW_TOKENS)
        progress.advance(1, f"steps {','.join(map(str, steps))}: KL {scores[steps]:.4f}")
    finalists = sorted(scores, key=lambda steps: scores[steps])[:FINALISTS]
    _restore(parameters, present)
    least, best = judge(MANY_TOKENS), None
    finals = {}
    for steps in finalists:
        _set(parameters, steps)
        finals[steps] = judge(MANY_TOKENS)
        progress.advance(1, f"steps {','.join(map(str, steps))}: KL {finals[steps]:.4f}")
    steps = min(finals, key=lambda steps: finals[steps])
    if finals[steps] < (1 - GAIN) * least:
        least, best = finals[steps], steps
    _restore(parameters, present) if best is None else _set(parameters, best)
    for number, group in enumerate(groups if len(groups) > 1 else []):
        for steps in finalists:
            if steps == best:
                continue
            held = [entry.steps.clone() for entry in group]
            _set(group, steps)
            now = judge(MANY_TOKENS)
            progress.advance(1, f"layers of group {number + 1} of {len(groups)}: KL {now:.4f}")
            if now < (1 - GAIN) * least:
                least = now
            else:
                _restore(group, held)
    progress.done(f"schedules by depth: KL {least:.4f} nats")


def _by_depth(model: PreTrainedModel) -> list[list[NeuronParameters]]:
    """The parameters of the sites in blocks, in `GROUPS` groups from the first layers to the last."""
    config = clock_of(model).config
    blocks = [block for segment in find_segments(model) for block in blocks_of(segment)]
    count = min(GROUPS, len(blocks))
    groups: list[list[NeuronParameters]] = [[] for _ in range(count)]
    for index, block in enumerate(blocks):
        for site in _sites(block):
            if (entry := site.parameters_for(config)) is not None:
                groups[index * count // len(blocks)].append(entry)
    return [group for group in groups if group]


def _sites(block: nn.Module) -> list[Site]:
    return [module for module in block.modules() if isinstance(module, Site) and module.calibrates]


def _set(parameters: Sequence[NeuronParameters], steps: Schedule) -> None:
    for entry in parameters:
        entry.steps.copy_(torch.tensor(steps, dtype=torch.float32))


def _restore(parameters: Sequence[NeuronParameters], values: Sequence[Tensor]) -> None:
    for entry, steps in zip(parameters, values, strict=True):
        entry.steps.copy_(steps)
