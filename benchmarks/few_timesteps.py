"""Few timesteps, no loss: ``python benchmarks/few_timesteps.py [--babyllama FOLDER --stories FILE] [--jobs 8]``.

The embedded model and, if its folder is given, the small LLaMA, synchronous, with L chosen for T (complete schedules) and
one or two neurons a channel; each plan is one Stage 1 (1,600 and 1,500 steps) and its control of the same steps, then every
time before and after Stage 2. Plans run in processes of their own. Writes ``benchmarks/results/few-timesteps.json``; a
finished plan is not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from babyllama import LENGTH, split
from extra_rows import extra_rows

from fas.cli.show import Lines
from fas.pipeline.convert import run_conversion
from fas.pipeline.load import load_ann
from fas.pipeline.options import ConvertOptions
from fas.report.results import Results
from fas.tasks.language_modeling import Blocks, encode_blocks, spread
from fas.tasks.text import load_text

RESULTS = Path(__file__).parent / "results" / "few-timesteps.json"
SEQUENCES = 128
KEPT = ("note", "options", "control", "seconds")


def tracked(*timesteps: int, neurons: int = 1) -> list[dict[str, Any]]:
    return [{"coding": "sigma_delta", "timesteps": t, "neurons_per_channel": neurons} for t in timesteps]


def rate(*timesteps: int, rows: str = "mean") -> list[dict[str, Any]]:
    return [{"coding": "rate", "timesteps": t, "rows": rows} for t in timesteps]


# plan: (coverage, L, times; the first is what the conversion itself calibrates)
PLANS: dict[str, tuple[str, int, list[dict[str, Any]]]] = {
    "full-8": ("full", 8, [*tracked(4, 8), *tracked(4, neurons=2)]),
    "attention-8": ("attention", 8, [*tracked(4, 8), *tracked(2, 4, neurons=2)]),
    "linear-8": ("linear", 8, [*tracked(4, 8, 2, 3, 16), *tracked(2, 3, 4, neurons=2), *rate(4, 8, 16)]),
    "linear-15": ("linear", 15, [*tracked(16, 8, 4)]),
    "linear-7": ("linear", 7, [*tracked(3, 4, 8), *tracked(2, neurons=2), *rate(8)]),
    "linear-4": ("linear", 4, [*rate(4, 8), *tracked(3, 4)]),
    "linear-3": ("linear", 3, [*tracked(2, 3, 4), *tracked(2, neurons=2)]),
    "ffn-8": ("ffn", 8, [*tracked(4, 2, 3, 8), *tracked(2, neurons=2), *rate(2, 4, 8), *rate(2, 4, 8, rows="step")]),
    "ffn-4": ("ffn", 4, [*rate(4, 2, 8), *rate(4, 2, rows="step"), *tracked(2, 3, 4)]),
    "ffn-2": ("ffn", 2, [*rate(2, 4), *rate(2, rows="step"), *tracked(2)]),
    "babyllama-linear-15": ("linear", 15, [*tracked(8, 4), *tracked(4, 8, neurons=2)]),
    "babyllama-ffn-15": ("ffn", 15, [*tracked(4, 8), *tracked(4, neurons=2)]),
    "babyllama-ffn-31": ("ffn", 31, [*tracked(8), *tracked(4, 8, neurons=2)]),
}


def options(plan: str, args: argparse.Namespace) -> ConvertOptions:
    coverage, levels, times = PLANS[plan]
    common = ConvertOptions(
        model="builtin", data="builtin", out=Path(args.work) / plan, coverage=coverage, levels=levels,
        codings=(times[0]["coding"],), timesteps=(times[0]["timesteps"],), stage1_steps=args.steps, lr=5e-4, length=128,
        before_stage2=True, eval_sequences=SEQUENCES, seed=args.seed, device=args.device,
    )  # fmt: skip
    if not plan.startswith("babyllama"):
        return common
    training, evaluation = split(Path(args.stories), Path(args.work))
    return replace(
        common, model=args.babyllama, data=str(training), eval_data=str(evaluation), lr=1e-4, length=LENGTH,
        stage1_steps=args.babyllama_steps,
    )  # fmt: skip


def run(plan: str, args: argparse.Namespace) -> None:
    """All rows of one plan, written beside its folder after each time."""
    torch.set_num_threads(1)
    settings, place, progress = options(plan, args), Path(args.work) / f"{plan}.json", Lines(sys.stderr)
    results = run_conversion(settings, progress)
    _, tokenizer = load_ann(settings.model, "cpu")
    text = load_text(settings.data, settings.eval_data)
    training, evaluation = (
        encode_blocks(tokenizer, part, settings.length or 0) for part in (text.training, text.evaluation)
    )
    calibration, measured = (
        spread(training, settings.calibration_sequences or Blocks.CALIBRATION),
        spread(evaluation, SEQUENCES),
    )
    for time in PLANS[plan][2][1:]:
        results.write(place.with_suffix(".part"))
        results.rows += extra_rows(settings.out, [time], calibration, measured, progress)
    results.write(place)


def gathered(args: argparse.Namespace) -> Results:
    """The rows of all finished plans, each with its own control."""
    total = Results("builtin, babyllama", "builtin, TinyStories", args.seed)
    for plan in PLANS:
        if (place := Path(args.work) / f"{plan}.json").exists():
            found = Results.read(place)
            rows = [row for row in found.rows if row.schedule != "layerwise"]
            total.rows += [replace(row, model=plan, by_site=None, steps_by_site=None) for row in rows]
            total.versions = found.versions
            total.extra[plan] = {"command": found.command, **{name: found.extra.get(name) for name in KEPT}}
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", nargs="+", choices=list(PLANS))
    parser.add_argument("--babyllama", help="folder of the small LLaMA")
    parser.add_argument("--stories", help="its text")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--babyllama-steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="plans side by side")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", default="runs/benchmark-few-timesteps")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    Path(args.work).mkdir(parents=True, exist_ok=True)
    plans = args.plan or [plan for plan in PLANS if args.babyllama or not plan.startswith("babyllama")]
    if len(plans) == 1:
        run(plans[0], args)
        gathered(args).write(args.out)
        return

    def one(plan: str) -> None:
        with open(Path(args.work) / f"{plan}.log", "w") as log:
            subprocess.run([sys.executable, *sys.argv, "--plan", plan], stderr=log, stdout=log)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, [plan for plan in plans if not (Path(args.work) / f"{plan}.json").exists()]))
    found = gathered(args)
    found.write(args.out)
    missing = [plan for plan in plans if plan not in found.extra]
    if missing:
        raise SystemExit(f"{', '.join(missing)} failed; see their logs in {args.work}")


if __name__ == "__main__":
    main()
