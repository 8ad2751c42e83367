"""Stage 2 against the paper's recipe: ``python benchmarks/stage2.py --work DIR`` (DIR/ffn: a conversion of the embedded model).

Both see the same sequences, equally often at most (a visit: one sequence through the spiking layers, with or without
gradient; counted, ours needs fewer), and calibrate the same QCFS model, coverage ``ffn``, rate coding with rows of single
timesteps; each in a process of its own, once for the time and once for the memory: the most that the process grew during
Stage 2, while the allocator hands everything back that is freed. Also ours on random models of 6, 12 and 24 layers, in memory
and from disk, and the paper's on 24.
Writes ``benchmarks/results/stage2.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import fas
from fas.calibration import CalibrationOptions, calibrate, calibrate_folder
from fas.conversion import describe
from fas.methods import PublishedOptions, calibrate_as_published
from fas.models import find_segments
from fas.pipeline.measure import EVALUATION_BATCH
from fas.report.results import this_command, versions
from fas.runtime.control import as_qcfs, clock_of, sites_of
from fas.runtime.memory import keep_freed_memory, return_freed_memory
from fas.runtime.replay import blocks_of
from fas.storage import write_whole
from fas.tasks.language_modeling import encode_blocks, evaluate, spread
from fas.tasks.text import load_text

RESULTS = Path(__file__).parent / "results" / "stage2.json"
SEQUENCES, BATCH = 32, 1
VISITS = 16 * SEQUENCES
FEW = 8
"""Visits of the paper's recipe where only its memory is measured, which does not grow with them."""
LAYERS = (6, 12, 24)
WIDTH, LENGTH = 256, 64


RETURNED = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "4096", "MALLOC_TOP_PAD_": "0"}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measured(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of ``run`` and by how much the process grew."""
    return_freed_memory()
    base, peak, stop = resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    try:
        run()
    finally:
        seconds = time.perf_counter() - start
        stop.set()
        thread.join()
    return {"seconds": round(seconds, 2), "peak_bytes": max(0, peak[0] - base)}


def synthetic(layers: int) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=WIDTH, n_head=4, vocab_size=512, n_positions=LENGTH)
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(512, (SEQUENCES, LENGTH))
    return model, [{"input_ids": ids}]


def prepared(work: str, model: str) -> tuple[Any, torch.Tensor, torch.Tensor | None]:
    if model == "builtin":
        folder = str(Path(work) / "ffn")
        snn, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        text = load_text("builtin")
        blocks = encode_blocks(tokenizer, text.training, 128)
        return snn, spread(blocks, SEQUENCES), spread(encode_blocks(tokenizer, text.evaluation, 128), 128)
    ann, (batch,) = synthetic(int(model))
    config = fas.SpikingConfig(coverage="ffn", levels=8, timesteps=4, coding="rate")
    return fas.convert(fas.prepare(ann, config, [{"input_ids": batch["input_ids"][:4]}])), batch["input_ids"], None


def child(work: str, model: str, recipe: str, timesteps: int, options: dict[str, Any], memory: bool) -> dict[str, Any]:
    """One calibration in this process; for its ``memory`` nothing else is measured."""
    torch.manual_seed(0)
    if not memory:
        keep_freed_memory()
    snn, sequences, evaluation = prepared(work, model)
    snn.set_timesteps(timesteps, coding="rate", rows="step")
    for site in sites_of(snn).values():  # no neurons of an earlier calibration
        site.neurons.clear()
    describe(snn)
    batches = [{"input_ids": ids} for ids in sequences.split(BATCH)]

    def ppl() -> float | None:
        return (
            None if evaluation is None or memory else round(evaluate(snn, evaluation, EVALUATION_BATCH).perplexity, 4)
        )

    row: dict[str, Any] = {
        "model": model,
        "recipe": recipe,
        "coding": "rate",
        "coverage": "ffn",
        "timesteps": timesteps,
    }
    with as_qcfs(snn):
        row["qcfs_perplexity"] = ppl()
    row["uncalibrated_perplexity"] = ppl()
    warm_up(snn, sequences[:1])
    visits = counted(snn)
    if recipe == "ours":
        row |= measured(lambda: calibrate(snn, batches, CalibrationOptions(**options)))
    elif recipe == "ours, activations on disk":
        with tempfile.TemporaryDirectory() as folder:
            row |= measured(lambda: calibrate(snn, batches, CalibrationOptions(**options), activations=folder))
    elif recipe == "ours from disk":
        with tempfile.TemporaryDirectory() as folder:
            snn.save_pretrained(f"{folder}/in")
            del snn
            settings = CalibrationOptions(**options)
            time_ = {"timesteps": timesteps, "coding": "rate", "rows": "step"}
            row |= measured(lambda: calibrate_folder(f"{folder}/in", f"{folder}/out", batches, settings, **time_))
    else:
        if memory:
            options = options | {"visits": FEW}
        row |= measured(lambda: calibrate_as_published(snn, batches, PublishedOptions(**options)))
    row["visits"] = visits[0]
    if evaluation is not None:
        row["perplexity"] = ppl()
    return row | {"options": options}


def warm_up(snn: Any, ids: torch.Tensor) -> None:
    """One step of an optimizer, so that libraries which load at first use are not counted as memory or time of a recipe."""
    scale = torch.ones((), requires_grad=True)
    optimizer = torch.optim.AdamW([scale])
    (snn(input_ids=ids).logits.mean() * scale).backward()
    optimizer.step()
    snn.zero_grad()


def counted(snn: Any) -> list[int]:
    """How many sequences the first block has seen since, all timesteps of one together and without those of the QCFS model."""
    clock, seen = clock_of(snn), [0]
    (segment,) = find_segments(snn)

    def count(module: Any, args: Any, output: Any) -> None:
        rows = (output[0] if isinstance(output, tuple) else output).shape[0]
        seen[0] += rows // clock.config.timesteps if clock.folds else 0

    blocks_of(segment)[0].register_forward_hook(count)
    return seen


def jobs() -> list[tuple[str, str, int, dict[str, Any]]]:
    """(model, recipe, T, options): the same visits for both."""
    ours: dict[str, Any] = {"search_rows": 512, "global_steps": 64}
    # in eight timesteps of the paper's rows the layers' own calibration makes the logits worse (docs/log.md)
    unsearched = {"coarse": False, "per_channel": False, "corrections": False, "fit_steps": 0}
    logits_alone = {"search_rows": 512, "global_steps": 96} | unsearched
    by_layer: dict[str, Any] = {"search_rows": 512}
    disk = "ours, activations on disk"
    paper = {"visits": VISITS}
    found: list[tuple[str, str, int, dict[str, Any]]] = []
    for timesteps in (2, 4, 8):
        mine = logits_alone if timesteps == 8 else ours
        found += [("builtin", disk, timesteps, mine), ("builtin", "paper", timesteps, paper)]
    found.append(("builtin", "ours", 4, ours))
    found.append(("builtin", "paper", 4, {"visits": 2 * SEQUENCES}))
    for layers in LAYERS:
        found += [(str(layers), recipe, 4, by_layer) for recipe in ("ours", "ours from disk")]
    found.append((str(LAYERS[-1]), "paper", 4, paper))
    return found


def in_process(work: str, job: tuple[Any, ...], memory: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", work, "--child", json.dumps([*job, memory])]
    environment = os.environ | (RETURNED if memory else {})
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.work, *json.loads(args.child))))
        return
    rows = []
    for job in jobs():
        row, in_memory = (in_process(args.work, job, memory) for memory in (False, True))
        rows.append(row | {"peak_bytes": in_memory["peak_bytes"]})
        print(rows[-1], flush=True)
    results = Path(args.work) / "ffn" / "results.json"
    control = next(row for row in json.loads(results.read_text())["rows"] if row["name"] == "control")
    for row in rows:
        if row["model"] == "builtin":
            row["control_perplexity"] = control["perplexity"]
    about = {"sequences": SEQUENCES, "visits": VISITS, "seed": 0, "versions": versions(), "command": this_command()}
    write_whole(RESULTS, json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
