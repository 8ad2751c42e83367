"""A diagnosis of temporal error for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fas.config import spoken
from fas.sections import Section, as_text

DEAREST = 3


def diagnosis_text(found: Mapping[str, Any]) -> str:
    """``Diagnosis.to_dict()`` as lines of text."""
    return as_text(diagnosis_sections(found))


def diagnosis_sections(found: Mapping[str, Any]) -> list[Section]:
    """``Diagnosis.to_dict()``: a line a site, a line a layer, and which layers cost most."""
    shown = shown_timesteps(max((len(layer["distances"]) for layer in found["layers"]), default=0))
    times = [f"t = {t}" for t in shown]
    lines: list[tuple[str, ...]] = [
        ("layer, site", "cost (nats)", *times, "too high", "too low", "lagging", "residual")
    ]
    for layer in found["layers"]:
        distances = [f"{layer['distances'][t - 1]:.3f}" if layer["distances"] else "" for t in shown]
        lines.append((layer["name"], f"{layer['cost']:+.4f}", *distances, "", "", "", ""))
        for site in layer["sites"]:
            shares = (f"{site[name]:.1%}" for name in ("too_high", "too_low", "lagging"))
            lines.append(
                (f"  {site['name'].rsplit('.', 1)[-1]}", "", *[""] * len(shown), *shares, f"{site['residual']:.2f}")
            )
    dear = sorted((layer for layer in found["layers"] if layer["cost"] > 0), key=lambda layer: -layer["cost"])[:DEAREST]
    names = ", ".join(f"{layer['name']} ({layer['cost']:.4f})" for layer in dear)
    title = f"Temporal error of {spoken(found['key'])}: KL to the QCFS model {found['kl']:.4f} nats a token"
    explained = Section(
        behind=[
            "Cost: what would be saved if the layer's neurons never lagged. t = …: distance of the layer's readout from the",
            "QCFS model's after so many timesteps, relative to that. Too high, too low: neurons that end more than half a",
            "grid step from the QCFS model. Lagging: from the QCFS unit of their own final input. Residual: distance from",
            "that input in grid steps (¼: rounding).",
        ]
    )
    worst = f"Costs most: {names}." if dear else "No layer costs anything."
    return [Section(title, behind=[worst]), Section(table=lines), explained]


def shown_timesteps(timesteps: int) -> list[int]:
    """The timesteps that a line has room for: powers of two, and the last one.

    >>> shown_timesteps(8), shown_timesteps(3), shown_timesteps(0)
    ([1, 2, 4, 8], [1, 2, 3], [])
    """
    powers = [2**n for n in range(max(0, timesteps - 1).bit_length())]
    return [*powers, timesteps] if timesteps else []
