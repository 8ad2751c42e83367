"""Vision-language models, spiking as a whole: ``python benchmarks/vision_language.py --vqa DIR --captioner DIR …``.

A LLaVA architecture on easy-VQA (``--vqa`` the model, ``--easy-vqa`` the data) and a BLIP architecture that captions drawn
shapes (``--captioner``), both made by ``scripts/train_vision.py``. Each coverage is one conversion of vision tower, projector
and language model; all of a model share one control (fine-tuned with the same images, in the same order, for as many steps).
What is finished in ``--work`` is not computed again. Writes ``benchmarks/results/vision-language.json``: rows with task, name,
coverage, coding, timesteps, metric, value.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fas.cli.session import silence_libraries
from fas.cli.show import Lines
from fas.pipeline.convert import run_conversion
from fas.pipeline.options import ConvertOptions
from fas.report.results import Results, this_command, versions
from fas.storage import write_whole
from fas.tasks.glue import CAPTIONING, VQA
from fas.tasks.shapes import write_shapes

RESULTS = Path(__file__).parent / "results" / "vision-language.json"
COVERAGES: dict[str, dict[str, Any]] = {
    "linear": {"levels": 15, "codings": ("sigma_delta",), "timesteps": (8,), "activation": "keep"},
    "ffn": {"levels": 8, "codings": ("rate",), "timesteps": (8,)},
    "full": {"levels": 15, "codings": ("sigma_delta",), "timesteps": (16,), "activation": "keep"},
}
STEPS: dict[str, dict[str, Any]] = {
    VQA: {"stage1_steps": 200, "batch_size": 64, "lr": 2e-4},
    CAPTIONING: {"stage1_steps": 400, "batch_size": 64, "lr": 2e-4},
}
PICTURES, SIDE = (4000, 1000), 48
"""Drawn for the captioner to train and to be measured on; pixels of a side."""
KEPT = ("name", "coverage", "coding", "schedule", "timesteps", "levels", "stage2", "metric", "value", "metrics", "items",
        "spikes_per_neuron", "seconds")  # fmt: skip


def options_of(args: argparse.Namespace, task: str, coverage: str) -> ConvertOptions:
    data = args.easy_vqa if task == VQA else str(Path(args.work) / "shapes" / "captions")
    return ConvertOptions(
        model=args.vqa if task == VQA else args.captioner, data=data, task=task, out=place_of(args, task, coverage),
        coverage=coverage, before_stage2=True, eval_sequences=args.examples, device=args.device, seed=args.seed,
        distill_states=args.distill_states, **STEPS[task], **COVERAGES[coverage],
    )  # fmt: skip


def place_of(args: argparse.Namespace, task: str, coverage: str) -> Path:
    return Path(args.work) / f"{task}-{coverage}"


def written(args: argparse.Namespace) -> None:
    """All rows there are; ANN and control once for each task."""
    rows: list[dict[str, Any]] = []
    for task in STEPS:
        seen: set[str] = set()
        for coverage in COVERAGES:
            file = place_of(args, task, coverage) / "results.json"
            for row in Results.read(file).rows if file.exists() else ():
                if row.name in seen:
                    continue
                seen |= {row.name} & {"ann", "control"}
                kept = {name: getattr(row, name) for name in KEPT if getattr(row, name) is not None}
                rows.append({"task": task} | kept | {"seed": args.seed})
    about = {
        "models": {VQA: "LLaVA architecture, easy-VQA", CAPTIONING: "BLIP architecture, drawn shapes"}, "note": args.note,
        "coverages": COVERAGES, "steps": STEPS, "versions": versions(), "command": this_command(),
    }  # fmt: skip
    write_whole(Path(args.results), json.dumps(about | {"rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vqa", help="folder of the LLaVA")
    parser.add_argument("--easy-vqa", help="folder with easy-VQA's train and test")
    parser.add_argument("--captioner", help="folder of the BLIP")
    parser.add_argument("--work", required=True)
    parser.add_argument("--results", default=str(RESULTS))
    parser.add_argument("--coverages", default=",".join(COVERAGES))
    parser.add_argument("--examples", type=int, help="at most so many to measure on")
    parser.add_argument("--distill-states", type=float, default=1.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    silence_libraries()
    tasks = [task for task, model in ((CAPTIONING, args.captioner), (VQA, args.vqa)) if model]
    if args.captioner and not (shapes := Path(args.work) / "shapes").exists():
        write_shapes(shapes, *PICTURES, args.seed, SIDE)
    for task in tasks:
        first: Path | None = None
        for coverage in args.coverages.split(","):
            run_conversion(options_of(args, task, coverage), Lines(sys.stderr), first)
            first = first or place_of(args, task, coverage)
            written(args)


if __name__ == "__main__":
    main()
