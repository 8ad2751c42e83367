"""Zero-shot tasks on the small LLaMA: ``python benchmarks/zero_shot.py --model FOLDER --stories FILE --questions FOLDER``.

Converts it without Stage 1 (`linear`, L = 15, sigma-delta, T = 8 and 4 after Stage 2) and measures ANN, QCFS model and SNN on
200 items of each file of questions. A model of 1 M parameters that read children's stories is near chance at most of them:
this proves the harness, not the model. Writes ``benchmarks/results/zero-shot-babyllama.json``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from babyllama import LENGTH, split

from fas.cli.show import Lines
from fas.pipeline.convert import run_conversion
from fas.pipeline.options import ConvertOptions
from fas.pipeline.zero_shot import evaluate_tasks
from fas.report.table import print_results

RESULTS = Path(__file__).parent / "results" / "zero-shot-babyllama.json"
FIVE = ("piqa", "arc_easy", "openbook_qa", "copa", "winogrande")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the small LLaMA")
    parser.add_argument("--stories", required=True, help="its text")
    parser.add_argument("--questions", required=True, help="folder with the five files")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="runs/benchmark-zero-shot")
    args = parser.parse_args()
    torch.set_num_threads(1)
    progress, place = Lines(sys.stderr), Path(args.work) / "linear"
    if not (place / "results.json").exists():
        training, evaluation = split(Path(args.stories), Path(args.work))
        options = ConvertOptions(
            model=args.model, data=str(training), eval_data=str(evaluation), out=place, coverage="linear", levels=15,
            timesteps=(4, 8), stage1="none", length=LENGTH, eval_sequences=32, seed=args.seed,
        )  # fmt: skip
        run_conversion(options, progress)
    files = [str(Path(args.questions) / f"{name}.jsonl") for name in FIVE]
    results = evaluate_tasks(place, files, limit=args.limit, seed=args.seed, progress=progress)
    results.rows = [replace(row, by_site=None, steps_by_site=None) for row in results.rows]
    results.write(RESULTS)
    print_results(results)


if __name__ == "__main__":
    main()
