"""The mean loss of a batch from those of its chunks: how much each of them weighs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fas.errors import FasError

IGNORED = -100
"""The label that counts nowhere, as everywhere in transformers."""


def weights(labels: Tensor) -> dict[str, Tensor]:
    """How many of ``labels`` ``[B, …]`` count in each sequence ``[B]``: all of them (``each``), or all but the first token's
    (``next``), as of those who predict the next token."""
    counted = torch.ones_like(labels, dtype=torch.bool) if labels.is_floating_point() else labels != IGNORED
    found = {"each": counted.reshape(len(labels), -1).sum(1)}
    if labels.ndim > 1 and not labels.is_floating_point():
        found["next"] = counted[:, 1:].reshape(len(labels), -1).sum(1)
    return found


def telling(labels: Tensor) -> int:
    """The sequence that says most about its loss."""
    return int(weights(labels)["each"].argmax())


def convention(row: Tensor, output: Any) -> str | None:
    """Which of `weights` the mean loss in ``output`` of one sequence counts, of labels ``row`` ``[1, …]``; None: neither."""
    logits, loss = getattr(output, "logits", None), getattr(output, "loss", None)
    if row.is_floating_point():
        return "each"
    for kind in ("each", "next"):
        if isinstance(logits, Tensor) and isinstance(loss, Tensor):
            some, wanted = (logits[:, :-1], row[:, 1:]) if kind == "next" and row.ndim > 1 else (logits, row)
            if some.shape[:-1] == wanted.shape:
                mean = F.cross_entropy(some.flatten(0, -2).float(), wanted.flatten().to(some.device))
                if torch.isclose(mean.to(loss.device), loss.float(), rtol=1e-3):
                    return kind
    return None


def shares(model: Any, labels: Tensor, kind: str | None) -> Tensor:
    """What each sequence of ``labels`` ``[B, …]`` counts for in the mean loss ``[B]``, which is of that `convention`; raises
    `FasError` if it is of neither, and sequences differ."""
    known = weights(labels)
    if all(bool((counts == counts[0]).all()) for counts in known.values()):
        return torch.ones(len(labels))
    if kind is None:
        raise FasError(
            f"{type(model).__name__} takes a mean loss that cannot be put together from those of chunks, where sequences have "
            "different numbers of labels; call it inside fas.memory_limit without labels"
        )
    return known[kind]
