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


def few_timesteps() -> list[str]:
    """Each plan against its own control of the same steps, and the embedded model against the ANN as well."""
    rows = read("few-timesteps.json")["rows"]
    lines = []
    for plan in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == plan]
        control, ann = (next(row for row in mine if row["name"] == name) for name in ("control", "ann"))
        grid = next(row for row in mine if row["name"] == "qcfs")
        baby = plan.startswith("babyllama")

        def show(row: dict[str, Any], other: dict[str, Any], baby: bool = baby) -> str:
            if baby:
                return f"{row['loss'] / other['loss'] - 1:+.1%}"
            return f"×{row['perplexity'] / other['perplexity']:.3f}"

        for both in spiking_rows(mine):
            by_stage = {bool(row.get("stage2")): row for row in both}
            best, before = by_stage.get(True, both[0]), by_stage.get(False)
            lines.append(
                [
                    "BabyLlama" if baby else "embedded",
                    f"`{best['coverage']}`",
                    str(best["levels"]),
                    coding(best),
                    str(best["timesteps"]),
                    show(grid, control),
                    show(before, control) if before else "",
                    show(best, control),
                    show(best, ann),
                    f"{best['spikes_per_neuron']:.2f}",
                ]
            )
    head = [
        "model", "coverage", "L", "coding", "T", "QCFS model", "SNN before Stage 2", "SNN", "SNN / ANN", "spikes/neuron",
    ]  # fmt: skip
    return table(head, lines)


def stage2() -> list[str]:
    """Quality, time and memory of ours and of the paper's recipe."""
    lines = []
    for row in read("stage2.json")["rows"]:
        layers = row["model"] if row["model"] != "builtin" else "embedded, 4"
        lines.append(
            [
                f"{layers} layers",
                row["recipe"],
                str(row["timesteps"]),
                str(row["visits"] or ""),
                f"{row['uncalibrated_perplexity']:.2f}" if row.get("uncalibrated_perplexity") else "",
                f"{row['perplexity']:.2f}" if row.get("perplexity") else "",
                f"{row['seconds']:.1f}",
                f"{row['peak_bytes'] / 1e6:.1f}",
            ]
        )
    head = ["model", "recipe", "T", "visits", "perplexity before", "after", "seconds", "growth of the process, MB"]
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
            "Rows of `full` are from before the input of norms was shifted by its octave (2026-11-27).",
            "",
            *conversions(["builtin.json"], "perplexity", lambda value, control: f"×{value / control:.3f}"),
            "## Few timesteps",
            "",
            "Each row against the control of the same steps and seed (`benchmarks/few_timesteps.py`): the embedded model,",
            "1,600 steps at 5e-4 (control 39.58, worse than the ANN's 38.97; hence the ratio to the ANN beside it), and the",
            "small LLaMA, 1,500 steps at 1e-4 (loss). L is chosen for T; two neurons a channel make two moves a timestep.",
            "Trained and measured on one H100; at `linear`, `attention`, `full` Stage 2 ran without closed-form corrections.",
            "",
            *few_timesteps(),
            "## Stage 2 beside the paper's recipe",
            "",
            "The same QCFS model (`ffn`, L = 8, perplexity 38.13; control 39.58), rate coding with the paper's rows, the same",
            "32 sequences (`benchmarks/stage2.py`, one thread). A visit: one sequence through the spiking layers, with or",
            "without gradient. Growth of the process while the allocator hands everything back. The deeper models are random",
            "(width 256, 64 tokens), ours with the part by layer alone.",
            "",
            *stage2(),
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
