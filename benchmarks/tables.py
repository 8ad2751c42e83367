"""Writes ``docs/results.md`` from ``benchmarks/results``: ``python benchmarks/tables.py``. A test keeps both together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
CODINGS = {"sigma_delta": "sigma-delta", "rate": "rate"}


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def coding(row: dict[str, Any]) -> str:
    name = CODINGS[row["coding"]]
    if row.get("rows") == "step":
        name += " (step rows, the paper's)"
    each = row.get("neurons_per_channel") or 1
    return name + (f", {each} neurons a channel" if each > 1 else "")


def spiking_rows(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows before and after Stage 2, together by coverage, coding and time."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["name"] == "snn" and row.get("schedule") != "layerwise":
            key = row["coverage"], row["levels"], coding(row), row["timesteps"]
            found.setdefault(key, []).append(row)
    return [found[key] for key in sorted(found, key=lambda k: (COVERAGES.index(k[0]), k[1], k[2], k[3]))]


COVERAGES = ["ffn", "linear", "attention", "full"]


def conversions(names: Sequence[str], value: str, show: Any) -> list[str]:
    """One table of all conversions in files ``names``; ``show(value, control)`` is a cell."""
    lines = []
    for name in names:
        rows = read(name)["rows"]
        control = next(row for row in rows if row["name"] == "control")[value]
        grids = {(row["coverage"], row["levels"]): row[value] for row in rows if row["name"] == "qcfs"}
        for both in spiking_rows(rows):
            by_stage = {bool(row.get("stage2")): row for row in both}
            best = by_stage.get(True, both[0])
            after = by_stage.get(True)
            before = by_stage.get(False)
            lines.append(
                [
                    f"`{best['coverage']}`",
                    str(best["levels"]),
                    coding(best),
                    str(best["timesteps"]),
                    show(grids[best["coverage"], best["levels"]], control),
                    show(before[value], control) if before else "",
                    show(after[value], control) if after else "",
                    f"{best['spikes_per_neuron']:.2f}",
                ]
            )
    head = ["coverage", "L", "coding", "T", "QCFS model", "SNN before Stage 2", "SNN", "spikes/neuron"]
    return table(head, lines)


def outliers() -> list[str]:
    lines = []
    for row in read("outliers.json")["rows"]:
        lines.append(
            [
                row["model"],
                f"`{row['coverage']}`",
                f"a {row['scales']}",
                "rotated" if row["rotation"] != "none" else "",
                f"{row['qcfs'] - row['ann']:+.4f}",
                f"{row['snn'] - row['ann']:+.4f}",
            ]
        )
    return table(["model", "coverage", "a threshold for", "gated products", "QCFS model", "SNN"], lines)


def energy() -> list[str]:
    lines = []
    for row in read("ledger.json")["rows"]:
        strict, paper = row["ratios"]["snn_strict"], row["ratios"]["snn_paper"]
        lines.append(
            [
                f"`{row['coverage']}`",
                coding(row),
                str(row["timesteps"]),
                f"{row['macs_replaced'] / row['macs']:.0%}",
                f"{row['macs_run_all_the_same'] / row['macs']:.2f} ×",
                f"{row['spikes_per_neuron']:.2f}",
                f"×{paper['fp32 proxy']:.3f}",
                *(f"×{strict[column]:.2f}" for column in ("fp32 proxy", "same precision", "with memory")),
            ]
        )
    head = [
        "coverage", "coding", "T", "MACs replaced", "MACs run all the same", "spikes/neuron", "as papers count",
        "strict, fp32 proxy", "strict, int8", "strict, with memory",
    ]  # fmt: skip
    return table(head, lines)


def budgets() -> list[str]:
    """Quality and energy under spike budgets, against the better dense model."""
    found, lines = read("spike-budget.json")["rows"], []
    for model, title in (("builtin", "embedded"), ("babyllama", "LLaMA")):
        rows = [row for row in found if row["model"] == model]
        dense = min(row["value"] for row in rows if row["name"] in ("ann", "control"))
        for row in sorted((r for r in rows if "energy_strict_pj" in r), key=lambda r: -r["spikes_per_neuron"]):
            same = (row["levels"], row.get("budget"))
            grid = next(r for r in rows if r["name"] == "qcfs" and (r["levels"], r.get("budget")) == same)
            energy = f"×{row['energy_strict_pj'] / row['energy_ann_pj']:.3f}"
            lines.append(
                [title, str(row["levels"]), f"{row['budget']:g}" if "budget" in row else "none",
                 f"×{grid['value'] / dense:.3f}", f"×{row['value'] / dense:.3f}", f"{row['spikes_per_neuron']:.2f}", energy]
            )  # fmt: skip
    return table(["model", "L", "budget", "QCFS model", "SNN", "spikes/neuron", "energy, strict"], lines)


def page() -> str:
    baby = [f"babyllama-{coverage}.json" for coverage in COVERAGES]
    loss = read("babyllama-full.json")["rows"]
    ann, control = (next(row["loss"] for row in loss if row["name"] == name) for name in ("ann", "control"))
    return "\n".join(
        [
            "# Results",
            "",
            "Written by `benchmarks/tables.py` from `benchmarks/results`, where every file has its seed, versions and command.",
            "**Control**: the ANN, fine-tuned on the same data for as many steps as Stage 1. All figures are of simulation on",
            "evaluation text that was neither trained nor calibrated on.",
            "",
            "## The embedded model (GPT-2 shape, 2.2 M parameters)",
            "",
            "Perplexity against the control (38.63; ANN 38.97), 128 sequences of 128 tokens, 800 steps of Stage 1.",
            "Measured, as the next table, before neurons could wait in a dead zone; that moved T = 2, 3, 4, 8 at `linear` by",
            "+.9, 0, −.1 and 0 % (docs/log.md).",
            "",
            *conversions(["builtin.json"], "perplexity", lambda value, control: f"×{value / control:.3f}"),
            "## A real LLaMA (1 M parameters, TinyStories, characters)",
            "",
            f"Loss above the control ({control:.4f} nats; ANN {ann:.4f}) at `attention` and `full` on 128 blocks of 256",
            "tokens; at `ffn` and `linear` on 256 blocks (control .8133). 500 steps of Stage 1, L = 15. One ternary spike in",
            "each of eight timesteps cannot follow a chain of this depth once attention spikes too; twice the timesteps can,",
            "and so can two neurons a channel.",
            "",
            *conversions(baby, "loss", lambda value, control: f"{value / control - 1:+.1%}"),
            "## Outlier channels",
            "",
            "Training-free conversions, sigma-delta, T = 8, two neurons a channel, no Stage 2; loss above the ANN's in nats.",
            "Differences below .005 say nothing at this number of sequences.",
            "",
            *outliers(),
            "## Energy",
            "",
            "The embedded model's ledgers (`benchmarks/ledger.py`): 1,024 tokens of evaluation text. *As papers count*: the",
            "spiking products alone against the same multiply-accumulates, fp32. *Strict*: the whole network against the ANN",
            "in fp32, the ANN in int8, and (with memory) the quantized network of the same grid. What it means:",
            "[Energy, honestly](energy.md).",
            "",
            *energy(),
            "## Spike budgets",
            "",
            "Coverage `linear`, sigma-delta, T = 8 (`benchmarks/spike_budget.py`): perplexity against the better",
            "of control (as many steps) and ANN; strict energy of the whole network against the ANN, fp32",
            "proxy. *Budget*: expected spikes per neuron that Stage 1 was allowed; corrections on the way come on top.",
            "",
            *budgets(),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
