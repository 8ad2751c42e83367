"""What the ledger costs beside a plain forward: ``python benchmarks/ledger_overhead.py --work DIR`` (as `ledger.py`).

Time: medians of paired runs in one process. Memory: the most bytes of tensors alive at once during a run, and the peak of a
process that loads the model and runs it once (medians of several).
Writes ``benchmarks/results/ledger-overhead.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import fas
from fas.pipeline.load import load_spiking
from fas.report.results import this_command, versions
from fas.storage import write_whole
from fas.tasks.language_modeling import encode_blocks, spread
from fas.tasks.text import load_text

RESULTS = Path(__file__).parent / "results" / "ledger-overhead.json"
COVERAGES = ("ffn", "linear", "attention", "full")
REPEATS = 5
PROCESSES = 5


def prepared(work: str, coverage: str) -> tuple[Any, dict[str, torch.Tensor]]:
    model, tokenizer = load_spiking(str(Path(work) / coverage))
    model.set_timesteps(8, coding="sigma_delta")
    return model, {"input_ids": spread(encode_blocks(tokenizer, load_text("builtin").evaluation, 128), 8)}


def runs(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    def plain() -> None:
        with torch.no_grad():
            model(**batch)

    return {"plain": plain, "ledger": lambda: fas.ledger(model, batch)}


def child(work: str, coverage: str, which: str) -> None:
    """Print the most memory (KiB) that this process had, which loads the model and runs it once."""
    model, batch = prepared(work, coverage)
    runs(model, batch)[which]()
    # not getrusage: a child begins with the peak of its parent there
    print(
        next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    )


def process(work: str, coverage: str, which: str) -> int:
    """Bytes of the peak of a process of its own (`child`), the median of several."""
    command = [sys.executable, __file__, "--work", work, "--child", coverage, which]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(PROCESSES)]
    return 1024 * int(statistics.median(int(printed.split()[-1]) for printed in runs))


def live(run: Callable[[], Any]) -> int:
    """The most bytes of tensors that are alive at once during ``run``, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.work, *args.child)
        return
    rows = []
    for coverage in COVERAGES:
        model, batch = prepared(args.work, coverage)
        both = runs(model, batch)
        both["plain"]()
        ratios = []
        for _ in range(REPEATS):
            seconds = {}
            for name, run in both.items():
                start = time.perf_counter()
                run()
                seconds[name] = time.perf_counter() - start
            ratios.append(seconds["ledger"] / seconds["plain"])
        tensors = {name: live(run) for name, run in both.items()}
        processes = {which: process(args.work, coverage, which) for which in ("plain", "ledger")}
        rows.append(
            {
                "coverage": coverage,
                "time_ratio": statistics.median(ratios),
                "time_ratio_min": min(ratios),
                "time_ratio_max": max(ratios),
                "memory_ratio": tensors["ledger"] / tensors["plain"],
                "tensor_bytes": tensors,
                "process_ratio": processes["ledger"] / processes["plain"],
                "process_bytes": processes,
            }
        )
        print(rows[-1], flush=True)
    values = {"model": "builtin", "timesteps": 8, "seed": 0, "versions": versions(), "command": this_command()}
    write_whole(RESULTS, json.dumps(values | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
