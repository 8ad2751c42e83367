"""The whole table of the embedded model: ``python benchmarks/builtin.py [--steps N] [--sequences N]``.

Coverage ``ffn`` and ``linear``; T = 2, 3, 4, 8, 16; sigma_delta, rate with mean rows, and rate with the paper's step rows; each
before and after Stage 2. Writes ``benchmarks/results/builtin.json``; restartable, because conversions are.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
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
TIMESTEPS = (4, 2, 3, 8, 16)


def options(coverage: str, args: argparse.Namespace) -> ConvertOptions:
    return ConvertOptions(
        model="builtin", data="builtin", out=Path(args.work) / coverage, coverage=coverage, levels=8,
        codings=("sigma_delta", "rate"), timesteps=TIMESTEPS, stage1_steps=args.steps, lr=3e-4, length=128,
        calibration_sequences=16, eval_sequences=args.sequences, before_stage2=True, seed=args.seed,
    )  # fmt: skip


def step_rows(settings: ConvertOptions, progress: Lines) -> list[Row]:
    """The paper's way, on the same QCFS model: one step's charge a row, before and after Stage 2."""
    model, tokenizer = load_spiking(str(settings.out))
    text = load_text("builtin")
    blocks = spread(encode_blocks(tokenizer, text.evaluation, 128), settings.eval_sequences)
    training = spread(encode_blocks(tokenizer, text.training, 128), settings.calibration_sequences)
    rows = []
    for timesteps in TIMESTEPS:
        model.set_timesteps(timesteps, coding="rate", rows="step")
        target = clock_of(model).config
        rows.append(spiking_row(model, target, blocks, EVALUATION_BATCH, progress))
        fas.calibrate(model, [{"input_ids": batch} for batch in training.split(4)], progress=progress)
        rows.append(spiking_row(model, target, blocks, EVALUATION_BATCH, progress))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="runs/benchmark-builtin")
    args = parser.parse_args()
    progress, start = Lines(sys.stderr), time.time()
    results = Results("builtin", "builtin", args.seed)
    for coverage in ("ffn", "linear"):
        settings = options(coverage, args)
        converted = run_conversion(settings, progress)
        results.rows += [row for row in converted.rows if coverage == "ffn" or row.name in ("qcfs", "snn")]
        results.rows += step_rows(settings, progress)
        results.extra[f"control_{coverage}"] = converted.extra["control"]
    results.extra["seconds"] = round(time.time() - start)
    results.extra["peak_memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    results.write(RESULTS)
    print_results(results)


if __name__ == "__main__":
    main()
