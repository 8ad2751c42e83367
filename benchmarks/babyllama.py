"""The small LLaMA at every coverage: ``python benchmarks/babyllama.py --model FOLDER --stories FILE``.

Sigma-delta with L = 15: ``ffn`` at T = 4, ``linear`` at T = 8, ``attention`` and ``full`` at T = 8 and 16 with one neuron a
channel and, on the same QCFS model, at T = 8 with two. Trains on the first 2,000 stories and evaluates on the rest. Writes
``benchmarks/results/babyllama-*.json``; restartable.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from extra_rows import extra_rows

from fas.calibration import CalibrationOptions
from fas.cli.show import Lines
from fas.pipeline.convert import run_conversion
from fas.pipeline.load import load_ann
from fas.pipeline.options import ConvertOptions
from fas.report.table import print_results
from fas.tasks.language_modeling import Blocks, encode_blocks, spread
from fas.tasks.text import load_text

RESULTS = Path(__file__).parent / "results"
LENGTH = 256
TRAINING_STORIES = 2000
END = "<|endoftext|>"
TWO_NEURONS = {"timesteps": 8, "neurons_per_channel": 2}
# a global pass finds nothing where layers are fitted (docs/log.md), and takes long where attention spikes
WHOLE: dict[str, Any] = {"timesteps": (8, 16), "global_steps": 0}
PLANS: dict[str, dict[str, Any]] = {
    "ffn": {"timesteps": (4,), "before_stage2": True},
    "linear": {"timesteps": (8,), "before_stage2": True},
    "attention": WHOLE,
    "full": WHOLE,
}


def split(stories: Path, work: Path) -> tuple[Path, Path]:
    """The text as two files: what is trained on, what is evaluated on."""
    found = [story for story in stories.read_text(encoding="utf-8").split(END) if story.strip()]
    work.mkdir(parents=True, exist_ok=True)
    parts = work / "train.txt", work / "evaluation.txt"
    for part, texts in zip(parts, (found[:TRAINING_STORIES], found[TRAINING_STORIES:]), strict=True):
        part.write_text(END.join(texts), encoding="utf-8")
    return parts


def measure(coverage: str, args: argparse.Namespace, progress: Lines) -> None:
    """All rows of one coverage."""
    training, evaluation = split(Path(args.stories), Path(args.work))
    settings = ConvertOptions(
        model=args.model, data=str(training), eval_data=str(evaluation), out=Path(args.work) / coverage,
        coverage=coverage, levels=15, stage1_steps=args.steps, lr=1e-4, length=LENGTH, eval_sequences=args.sequences,
        seed=args.seed, **PLANS[coverage],
    )  # fmt: skip
    results = run_conversion(settings, progress)
    if PLANS[coverage] is WHOLE:
        _, tokenizer = load_ann(args.model, "cpu")
        text = load_text(str(training), str(evaluation))
        calibration, measured = (encode_blocks(tokenizer, part, LENGTH) for part in (text.training, text.evaluation))
        results.rows += extra_rows(
            settings.out, [TWO_NEURONS], spread(calibration, settings.calibration_sequences or Blocks.CALIBRATION),
            spread(measured, args.sequences), progress, CalibrationOptions(global_steps=settings.global_steps),
        )  # fmt: skip
    results.write(RESULTS / f"babyllama-{coverage}.json")
    print_results(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the small LLaMA")
    parser.add_argument("--stories", required=True, help=f"its text, stories ended by {END}")
    parser.add_argument("--coverage", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="runs/benchmark-babyllama")
    args = parser.parse_args()
    for coverage in args.coverage:
        measure(coverage, args, Lines(sys.stderr))


if __name__ == "__main__":
    main()
