"""Quality against spikes: ``python benchmarks/spike_budget.py [--babyllama FOLDER --stories FILE] [--model builtin]``.

Coverage ``linear``, sigma-delta, T = 8: the embedded model and, if its folder is given, the small LLaMA, each under several
spike budgets (`fas convert --pareto`); few levels for few spikes. Writes ``benchmarks/results/spike-budget.json``;
restartable, a budget at a time.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from babyllama import LENGTH, split

from fas.cli.show import Lines
from fas.pipeline.options import ConvertOptions
from fas.pipeline.pareto import run_pareto
from fas.report.results import Results
from fas.report.table import print_results

RESULTS = Path(__file__).parent / "results" / "spike-budget.json"
SWEEPS: dict[str, list[dict[str, Any]]] = {
    "builtin": [
        {"levels": 8, "budgets": (None, 0.6, 0.45)},
        {"levels": 4, "budgets": (0.5, 0.36, 0.26), "spike_price": 0.006},
    ],
    "babyllama": [
        {"levels": 15, "budgets": (None,)},
        {"levels": 15, "budgets": (1.2,), "spike_price": 0.0003},
        {"levels": 8, "budgets": (0.8,), "spike_price": 0.001},
        {"levels": 4, "budgets": (0.5, 0.1), "spike_price": 0.01},
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(SWEEPS), nargs="+", default=list(SWEEPS))
    parser.add_argument("--babyllama", help="folder of the small LLaMA")
    parser.add_argument("--stories", help="its text")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--babyllama-steps", type=int, default=1500)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--work", default="runs/benchmark-spike-budget")
    args = parser.parse_args()
    work, progress = Path(args.work), Lines(sys.stderr)
    common = ConvertOptions(
        model="builtin", data="builtin", out=work / "builtin", stage1_steps=args.steps, lr=5e-4, length=128,
        calibration_sequences=16, eval_sequences=args.sequences, global_steps=0,
    )  # fmt: skip
    models = {"builtin": common}
    if args.babyllama:
        training, evaluation = split(Path(args.stories), work)
        models["babyllama"] = replace(
            common, model=args.babyllama, data=str(training), eval_data=str(evaluation), lr=1e-4, length=LENGTH,
            stage1_steps=args.babyllama_steps,
        )  # fmt: skip
    for name in args.model:
        if name in models:
            store(name, sweeps(name, models[name], work, progress))


def sweeps(name: str, options: ConvertOptions, work: Path, progress: Lines) -> Results:
    """All points of one model; their control is the first sweep's."""
    total: Results | None = None
    for sweep in SWEEPS[name]:
        levels, budgets = sweep["levels"], sweep["budgets"]
        mine = replace(options, levels=levels, out=work / f"{name}-{levels}", spike_price=sweep.get("spike_price"))
        control = None if total is None else work / f"{name}-{SWEEPS[name][0]['levels']}" / "no-budget"
        found = run_pareto(mine, budgets, progress, control)
        if total is None:
            total = found
            total.extra = {}
        else:
            total.rows += [row for row in found.rows if row.name not in ("ann", "control")]
        total.extra[", ".join(f"{name} {value}" for name, value in sweep.items())] = asked(mine)
    assert total is not None
    print_results(total)
    return total


def asked(options: ConvertOptions) -> dict[str, Any]:
    """What a sweep was asked for."""
    return {**asdict(options), "out": str(options.out)}


def store(name: str, found: Results) -> None:
    """Put the rows of one model among those of the others."""
    kept = Results.read(RESULTS) if RESULTS.exists() else replace(found, rows=[], extra={})
    kept.model = ", ".join(dict.fromkeys([*(kept.model.split(", ") if kept.rows else []), name]))
    kept.extra[name] = found.extra
    kept.rows = [row for row in kept.rows if row.model != name] + [replace(row, model=name) for row in found.rows]
    kept.write(RESULTS)


if __name__ == "__main__":
    main()
