"""When a readout is confident: the head, which runs outside of folded time, is run on the rows of one timestep after another.

The segments run once; what they gave is kept and handed to the model's own forward again, so that whatever stands behind them
(heads, pooling, soft-capping, losses) is the model's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, update_wrapper, wraps
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import ConfigError
from fas.neurons import Clock
from fas.runtime.folding import FoldHook, read
from fas.runtime.limit import Limited

NO_LOGITS = "the model gives no logits to be confident of; use settled alone, or the model with its head"


def confidence_of(logits: Tensor, mask: Tensor | None) -> Tensor:
    """The largest probability of each row ``[B]`` of ``logits`` ``[B, n]``; of ``[B, S, n]`` its mean over the tokens that
    ``mask`` ``[B, ≥S]`` does not hide (the last S of it)."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    likeliest = (wide.amax(-1) - wide.logsumexp(-1)).exp().clamp(max=1)
    if likeliest.ndim == 1:
        return likeliest
    tokens = likeliest.shape[1]
    if mask is None or len(mask) != len(likeliest) or mask.shape[1] < tokens:
        return likeliest.flatten(1).mean(1)
    real = mask[:, -tokens:].to(likeliest)
    return (likeliest * real).sum(1) / real.sum(1).clamp(min=1)


@contextmanager
def heads_over_time(model: nn.Module, early: Any) -> Iterator[None]:
    """Inside, a forward of ``model`` reads each sequence at the first timestep at which ``early.confidence`` is reached."""
    if any(isinstance(hook, FoldHook) for hook in model._forward_pre_hooks.values()):
        raise ConfigError(NO_LOGITS)  # a bare segment
    # a limit to memory stays outside: it takes batches apart, and segments that ran on parts could not be told apart here
    home: Any = model.forward if isinstance(model.forward, Limited) else model
    plain, own = home.forward, "forward" in vars(home)

    segments = [
        part for part in model.modules() if any(isinstance(h, FoldHook) for h in part._forward_pre_hooks.values())
    ]
    before = {part: vars(part).get("forward") for part in segments}

    @wraps(plain)  # generate looks at the signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        early.trace = []
        try:
            output = plain(*args, **kwargs)
            runs = early.trace
        finally:
            early.trace = None
        if not runs:  # as QCFS model, without time
            return output
        for run in runs[:-1]:
            early.finish(run, early.stops_of(run))
        silent = {name: value for name, value in kwargs.items() if name != "labels"} | {"return_dict": True}
        stops = _first_confident(runs, early, partial(plain, *args, **silent))
        early.finish(runs[-1], stops)
        with _handing(runs, early, stops):
            return plain(*args, **kwargs)

    for part in segments:
        part.forward = _Handed(part, early.clock)  # type: ignore[method-assign]
    home.forward = forward
    try:
        yield
    finally:
        for module, replaced in ((home, plain if own else None), *before.items()):
            if replaced is None:
                del module.forward
            else:
                module.forward = replaced


class _Handed:
    """The forward of a segment: what it told before, while the head reads it again."""

    def __init__(self, module: nn.Module, clock: Clock) -> None:
        self.module, self.clock, self.forward = module, clock, module.forward
        update_wrapper(self, self.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        waiting = self.clock.now.handing
        return self.forward(*args, **kwargs) if waiting is None else waiting[self.module].pop(0)


def _first_confident(runs: list[Any], early: Any, head: Callable[[], Any]) -> Tensor:
    """Where the sequences of the last of ``runs`` stop ``[sequences]``; ``head`` runs the model on what they hand on."""
    run = runs[-1]
    stops = early.stops_of(run)
    for t in range(1, run.timesteps):
        if not (stops > t).any():
            break
        with _handing(runs, early, torch.full_like(stops, t)):
            logits = getattr(head(), "logits", None)
        if logits is None:
            raise ConfigError(NO_LOGITS)
        sure = (confidence_of(logits, run.mask) >= early.confidence).to(stops.device)
        each, shared = divmod(len(stops), len(sure))  # choices of one question stop together
        sure = sure.all().expand(len(stops)) if shared else sure.repeat_interleave(each)
        stops = torch.where(sure & (stops > t), t, stops)
    return stops


@contextmanager
def _handing(runs: list[Any], early: Any, stops: Tensor) -> Iterator[None]:
    """Inside, segments do not run again but hand on what they told, in turn, the last of ``runs`` its rows at ``stops``."""
    told = [read(copy.copy(run.output), run.pick(early.stops_of(run))) for run in runs[:-1]]
    told.append(read(copy.copy(runs[-1].output), runs[-1].pick(stops)))
    waiting: dict[nn.Module, list[Any]] = {}
    for run, output in zip(runs, told, strict=True):
        waiting.setdefault(run.module, []).append(output)
    now = early.clock.now
    before, now.handing = now.handing, waiting
    try:
        yield
    finally:
        now.handing = before
