"""The whole table of the embedded model: ``python benchmarks/builtin.py [--coverage ffn] [--timesteps 4 8]``.

Coverage ``ffn`` and ``linear``; T = 2, 3, 4, 8, 16; sigma_delta, rate with mean rows, and (``ffn``) rate with the paper's step
rows; each before and after Stage 2. Writes ``benchmarks/results/builtin.json``; restartable, because conversions are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import fas
from fas.cli.show import Lines
from fas.pipeline.convert import run_conversion
from fas.pipeline.load import load_spiking
from fas.pipeline.measure import EVALUATION_BATCH, spiking_row
from fas.pipeline.options import ConvertOptions
from fas.report.results import Results, Row
from fas.report.table import print_results
from fas.runtime.control import clock_of
from fas.tasks.language_modeling import encode_blocks, spread
from fas.tasks.text import load_text

RESULTS = Path(__file__).parent / "results" / "builtin.json"


def options(coverage: str, args: argparse.Namespace) -> ConvertOptions:
    return ConvertOptions(
        model="builtin", data="builtin", out=Path(args.work) / coverage, coverage=coverage, levels=8,
        codings=("sigma_delta", "rate"), timesteps=tuple(args.timesteps), stage1_steps=args.steps, lr=3e-4, length=128,
        calibration_sequences=16, eval_sequences=args.sequences, before_stage2=True, seed=args.seed,
    )  # fmt: skip


def step_rows(settings: ConvertOptions, args: argparse.Namespace, progress: Lines) -> list[Row]:
    """The paper's way, on the same QCFS model: one step's charge a row, before and after Stage 2."""
    model, tokenizer = load_spiking(str(settings.out))
    text = load_text("builtin")
    blocks = spread(encode_blocks(tokenizer, text.evaluation, 128), settings.eval_sequences)
    training = spread(encode_blocks(tokenizer, text.training, 128), settings.calibration_sequences)
    rows = []
    for timesteps in args.timesteps:
        model.set_timesteps(timesteps, coding="rate", rows="step")
        target = clock_of(model).config
        rows.append(spiking_row(model, target, blocks, EVALUATION_BATCH, progress))
        fas.calibrate(model, [{"input_ids": batch} for batch in training.split(4)], progress=progress)
        rows.append(spiking_row(model, target, blocks, EVALUATION_BATCH, progress))
    return rows


def measure(coverage: str, args: argparse.Namespace, progress: Lines) -> Results:
    """All rows of one coverage."""
    settings = options(coverage, args)
    results = run_conversion(settings, progress)
    if coverage == "ffn":  # what the paper's released code does
        results.rows += step_rows(settings, args, progress)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coverage", nargs="+", default=["ffn", "linear"])
    parser.add_argument("--timesteps", nargs="+", type=int, default=[4, 2, 3, 8, 16])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="runs/benchmark-builtin")
    args = parser.parse_args()
    progress = Lines(sys.stderr)
    for coverage in args.coverage:
        measured = measure(coverage, args, progress)
        if RESULTS.exists():  # rows of the other coverage stay; ANN and control are the same runs
            kept = Results.read(RESULTS)
            measured.rows += [row for row in kept.rows if row.coverage not in (None, coverage)]
            measured.extra = kept.extra | {f"{coverage}: {key}": value for key, value in measured.extra.items()}
        measured.write(RESULTS)
        print_results(measured)


if __name__ == "__main__":
    main()
