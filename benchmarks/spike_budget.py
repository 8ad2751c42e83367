"""Quality against spikes: ``python benchmarks/spike_budget.py [--babyllama FOLDER --stories FILE]``.

Coverage ``linear``, sigma-delta, T = 8: the embedded model (L = 8) and, if its folder is given, the small LLaMA (L = 15), each
under several spike budgets (`fas convert --pareto`). Writes ``benchmarks/results/spike-budget.json``; restartable, a budget
at a time.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from babyllama import LENGTH, split

from fas.cli.show import Lines
from fas.pipeline.options import ConvertOptions
from fas.pipeline.pareto import run_pareto
from fas.report.results import Results
from fas.report.table import print_results

RESULTS = Path(__file__).parent / "results" / "spike-budget.json"
BUDGETS = {"builtin": (None, 0.85, 0.6, 0.45, 0.35, 0.25), "babyllama": (None, 2.0, 1.5, 1.0, 0.7, 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--babyllama", help="folder of the small LLaMA")
    parser.add_argument("--stories", help="its text")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--work", default="runs/benchmark-spike-budget")
    args = parser.parse_args()
    work, progress = Path(args.work), Lines(sys.stderr)
    common = ConvertOptions(
        model="builtin", data="builtin", out=work / "builtin", levels=8, stage1_steps=args.steps, lr=3e-4, length=128,
        calibration_sequences=16, eval_sequences=args.sequences, global_steps=0,
    )  # fmt: skip
    sweeps = {"builtin": common}
    if args.babyllama:
        training, evaluation = split(Path(args.stories), work)
        sweeps["babyllama"] = replace(
            common, model=args.babyllama, data=str(training), eval_data=str(evaluation), out=work / "babyllama", levels=15,
            lr=1e-4, length=LENGTH,
        )  # fmt: skip
    for name, options in sweeps.items():
        found = run_pareto(options, BUDGETS[name], progress)
        print_results(found)
        kept = Results.read(RESULTS) if RESULTS.exists() else replace(found, rows=[], extra={})
        kept.model = ", ".join(dict.fromkeys([*(kept.model.split(", ") if kept.rows else []), name]))
        kept.extra[name] = found.extra
        kept.rows = [row for row in kept.rows if row.model != name] + [replace(row, model=name) for row in found.rows]
        kept.write(RESULTS)


if __name__ == "__main__":
    main()
