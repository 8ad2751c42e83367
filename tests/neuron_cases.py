"""Neurons to compare implementations on, and what counts as equal."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fas.neurons.qcfs import grid


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Rows of odd sizes, both dtypes, whole or cut from something larger, and constants a channel or a tensor."""
    timesteps, tokens, width = draw(st.integers(1, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 150))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = torch.randn(timesteps, tokens, width + 3, generator=generator) * draw(st.sampled_from([0.3, 1.0, 4.0]))
    rows = rows[..., :width] if draw(st.booleans()) else rows[..., :width].contiguous()
    if draw(st.booleans()):
        rows = rows.to(torch.bfloat16)
    each = (1,) if draw(st.booleans()) else (width,)
    neurons = draw(st.sampled_from([1, 2]))
    count = neurons * timesteps
    return {
        "rows": rows,
        "unit": torch.rand(each, generator=generator) * 0.3 + 0.05,
        "v_init": torch.rand(width, generator=generator),
        "a_init": torch.randint(-1, 2, (width,), generator=generator).float(),
        "steps": [2.0 ** draw(st.integers(0, 3)) for _ in range(count)],
        "zones": [draw(st.sampled_from([0.0, 0.0, 0.125, 0.25])) for _ in range(count)],
        "bounds": grid(draw(st.sampled_from([1, 4, 8, 15])), draw(st.booleans())),
        "signed": draw(st.booleans()),
        "mean": draw(st.booleans()),
    }


def same(found: Tensor, wanted: Tensor) -> bool:
    return found.dtype == wanted.dtype and found.shape == wanted.shape and torch.equal(found, wanted)


def same_but_at_edges(found: Tensor, wanted: Tensor) -> bool:
    """Logits ``[N, tokens, …]`` equal to rounding, in all but one sequence at most: on some processors rounding may move a
    value that lies at the very edge between two codes, and then all that follows."""
    off = ((found - wanted).abs() > 1e-4).flatten(1).any(1)
    return found.shape == wanted.shape and int(off.sum()) <= 1 < len(off)


def tracking(case: dict[str, Any]) -> list[Any]:
    return [case[name] for name in ("rows", "unit", "v_init", "a_init", "steps", "bounds", "zones")]


def near(found: Tensor, wanted: Tensor) -> bool:
    # what is summed over all tokens cancels
    size = float(wanted.float().abs().max()) + (1.0 if wanted.ndim == 1 else 1e-6)
    exact = 1e-5 if found.dtype == torch.float32 else 1e-2
    return found.dtype == wanted.dtype and bool(((found.float() - wanted.float()).abs() <= exact * size).all())
