"""A diagnosis of temporal error as plain lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fas.report.ledger_text import aligned

DEAREST = 3


def diagnosis_text(found: Mapping[str, Any]) -> str:
    """``Diagnosis.to_dict()`` for people: a line a site, a line a layer, and which layers cost most."""
    lines: list[tuple[str, ...]] = [
        ("layer, site", "cost (nats)", "layer error", "too high", "too low", "lagging", "residual")
    ]
    for layer in found["layers"]:
        error = "" if layer["error"] is None else f"{layer['error']:.4f}"
        lines.append((layer["name"], f"{layer['cost']:+.4f}", error, "", "", "", ""))
        for site in layer["sites"]:
            shares = (f"{site[name]:.1%}" for name in ("too_high", "too_low", "lagging"))
            lines.append((f"  {site['name'].rsplit('.', 1)[-1]}", "", "", *shares, f"{site['residual']:.2f}"))
    dear = sorted((layer for layer in found["layers"] if layer["cost"] > 0), key=lambda layer: -layer["cost"])[:DEAREST]
    names = ", ".join(f"{layer['name']} ({layer['cost']:.4f})" for layer in dear)
    return "\n".join(
        [
            f"Temporal error of {found['key']}: KL to the QCFS model {found['kl']:.4f} nats a token",
            f"Costs most: {names}." if dear else "No layer costs anything.",
            "",
            *aligned(lines),
            "",
            "Cost: what would be saved if the layer's neurons never lagged. Too high, too low: neurons that end more than",
            "half a grid step from the QCFS model. Lagging: from the QCFS unit of their own final input. Residual: distance",
            "from that input in grid steps (¼: rounding).",
        ]
    )
