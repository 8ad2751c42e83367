"""The whole table of the embedded model: ``python benchmarks/builtin.py [--plan ffn] [--sequences 64]``.

Coverage ``ffn`` and ``linear`` at L = 8, T = 2, 3, 4, 8, 16: sigma_delta, rate with mean rows, and (``ffn``) rate with the
paper's step rows; ``attention`` and ``full`` for sigma_delta at T = 8; and ``ffn`` at L = 4 for rate in few timesteps, whose
T + 1 values a finer grid only rounds twice. Each before and after Stage 2. Writes ``benchmarks/results/builtin.json``;
restartable, because conversions are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from extra_rows import extra_rows

from fas.cli.show import Lines
from fas.pipeline.convert import run_conversion
from fas.pipeline.load import load_ann
from fas.pipeline.options import ConvertOptions
from fas.report.results import Results, Row
from fas.report.table import print_results
from fas.tasks.language_modeling import encode_blocks, spread
from fas.tasks.text import load_text

RESULTS = Path(__file__).parent / "results" / "builtin.json"


ALL = (4, 2, 3, 8, 16)
PLANS: dict[str, dict[str, Any]] = {
    "ffn": {"coverage": "ffn", "levels": 8, "codings": ("sigma_delta", "rate"), "timesteps": ALL},
    "ffn-L4": {"coverage": "ffn", "levels": 4, "codings": ("rate",), "timesteps": (4, 2, 3)},
    "attention": {"coverage": "attention", "levels": 8, "codings": ("sigma_delta",), "timesteps": (8,)},
    "full": {"coverage": "full", "levels": 8, "codings": ("sigma_delta",), "timesteps": (8,)},
    "linear": {"coverage": "linear", "levels": 8, "codings": ("sigma_delta", "rate"), "timesteps": ALL},
}


def options(plan: str, args: argparse.Namespace) -> ConvertOptions:
    return ConvertOptions(
        model="builtin", data="builtin", out=Path(args.work) / plan, stage1_steps=args.steps, lr=3e-4, length=128,
        calibration_sequences=16, eval_sequences=args.sequences, before_stage2=True, seed=args.seed, **PLANS[plan],
    )  # fmt: skip


def step_rows(settings: ConvertOptions, progress: Lines) -> list[Row]:
    """The paper's way, on the same QCFS model: one step's charge a row, before and after Stage 2."""
    tokenizer = load_ann("builtin", "cpu")[1]
    text = load_text("builtin")
    blocks = spread(encode_blocks(tokenizer, text.evaluation, 128), settings.eval_sequences)
    training = spread(encode_blocks(tokenizer, text.training, 128), settings.calibration_sequences)
    times = [{"timesteps": timesteps, "coding": "rate", "rows": "step"} for timesteps in settings.timesteps]
    return extra_rows(settings.out, times, training, blocks, progress)


def measure(plan: str, args: argparse.Namespace, progress: Lines) -> Results:
    """All rows of one conversion."""
    settings = options(plan, args)
    results = run_conversion(settings, progress)
    if plan == "ffn":  # what the paper's released code does
        results.rows += step_rows(settings, progress)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="runs/benchmark-builtin")
    args = parser.parse_args()
    progress = Lines(sys.stderr)
    for plan in args.plan:
        measured = measure(plan, args, progress)
        if RESULTS.exists():  # rows of the other plans stay; ANN and control are the same runs
            kept, mine = Results.read(RESULTS), (PLANS[plan]["coverage"], PLANS[plan]["levels"])
            measured.rows += [row for row in kept.rows if row.coverage and (row.coverage, row.levels) != mine]
            measured.extra = kept.extra | {f"{plan}: {key}": value for key, value in measured.extra.items()}
        measured.write(RESULTS)
        print_results(measured)


if __name__ == "__main__":
    main()
