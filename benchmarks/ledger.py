"""Ledgers of the embedded model: ``python benchmarks/ledger.py --work DIR`` after ``benchmarks/builtin.py --work DIR``.

One batch of 8 × 128 tokens of evaluation text, every coverage; the paper's way (rate, step rows, ``ffn``) at T = 4 and 8 among
them. Writes ``benchmarks/results/ledger.json``: what became accumulates, what ran all the same, energy in every model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import fas
from fas.pipeline.load import load_spiking
from fas.report.results import this_command, versions
from fas.storage import write_whole
from fas.tasks.language_modeling import encode_blocks, spread
from fas.tasks.text import load_text

RESULTS = Path(__file__).parent / "results" / "ledger.json"
STEP_ROWS = {"coding": "rate", "rows": "step"}
RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ffn", STEP_ROWS | {"timesteps": 4}),
    ("ffn", STEP_ROWS | {"timesteps": 8}),
    ("ffn", {"coding": "sigma_delta", "timesteps": 4}),
    ("linear", {"coding": "sigma_delta", "timesteps": 4}),
    ("linear", {"coding": "sigma_delta", "timesteps": 8}),
    ("linear", {"coding": "rate", "timesteps": 8}),
    ("attention", {"coding": "sigma_delta", "timesteps": 8}),
    ("full", {"coding": "sigma_delta", "timesteps": 8}),
)
BLOCK_KINDS = ("linear", "attention")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True, help="where benchmarks/builtin.py left its conversions")
    parser.add_argument("--sequences", type=int, default=8)
    args = parser.parse_args()
    rows = []
    for coverage, time in RUNS:
        model, tokenizer = load_spiking(str(Path(args.work) / coverage))
        model.set_timesteps(**time)
        blocks = spread(encode_blocks(tokenizer, load_text("builtin").evaluation, 128), args.sequences)
        torch.manual_seed(0)
        found = fas.ledger(model, {"input_ids": blocks}, decode=True)
        forward = found.forward
        head = sum(p.macs for p in forward.products if p.module == "lm_head")
        rows.append(
            found.conversion
            | {
                "macs": forward.macs,
                "macs_of_blocks": forward.macs - head,
                "macs_replaced": forward.macs_replaced,
                "share_of_blocks": forward.macs_replaced / (forward.macs - head),
                "macs_run_all_the_same": forward.macs_analog_executed,
                "accumulates": forward.accumulates,
                "shifts": forward.shifts,
                "updates": forward.updates,
                "spikes_per_neuron": forward.spikes_per_neuron,
                "microjoule_a_token": {
                    row: {column: value / 1e6 / forward.tokens for column, value in cells.items()}
                    for row, cells in forward.energy.picojoules.items()
                },
                "ratios": forward.energy.ratios,
                "break_even": [vars(entry) | {"wins": entry.wins} for entry in forward.energy.break_even],
                "decode_ratios": found.decode.energy.ratios if found.decode is not None else {},
            }
        )
        print(found.headline, flush=True)
    values = {"model": "builtin", "seed": 0, "versions": versions(), "command": this_command(), "rows": rows}
    write_whole(RESULTS, json.dumps(values, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
