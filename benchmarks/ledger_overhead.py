"""What the ledger costs beside a plain forward: ``python benchmarks/ledger_overhead.py --work DIR`` (as `ledger.py`).

Time: medians of paired runs in one process. Memory: growth of the peak over the loaded model, each in a process of its own.
Writes ``benchmarks/results/ledger-overhead.json``.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fas
from fas.pipeline.load import load_spiking
from fas.report.results import this_command, versions, write_whole
from fas.tasks.language_modeling import encode_blocks, spread
from fas.tasks.text import load_text

RESULTS = Path(__file__).parent / "results" / "ledger-overhead.json"
COVERAGES = ("ffn", "linear", "attention", "full")
REPEATS = 5


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
    """Print by how many bytes one run raises this process's memory at most."""
    model, batch = prepared(work, coverage)
    warm = {"input_ids": batch["input_ids"][:1, :8]}
    for run in runs(model, warm).values():
        run()
    before, peak, done = resident(), [0], threading.Event()

    def sample() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.001)

    sampler = threading.Thread(target=sample)
    sampler.start()
    runs(model, batch)[which]()
    done.set()
    sampler.join()
    print(peak[0] - before)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


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
        peaks = {
            which: int(
                subprocess.run(
                    [sys.executable, __file__, "--work", args.work, "--child", coverage, which],
                    capture_output=True, text=True, check=True,
                ).stdout.split()[-1]
            )
            for which in ("plain", "ledger")
        }  # fmt: skip
        rows.append(
            {
                "coverage": coverage,
                "time_ratio": statistics.median(ratios),
                "time_ratio_min": min(ratios),
                "time_ratio_max": max(ratios),
                "memory_ratio": peaks["ledger"] / peaks["plain"],
                "peak_bytes": peaks,
            }
        )
        print(rows[-1], flush=True)
    values = {"model": "builtin", "timesteps": 8, "seed": 0, "versions": versions(), "command": this_command()}
    write_whole(RESULTS, json.dumps(values | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
