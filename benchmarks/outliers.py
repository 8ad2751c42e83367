"""Outlier handling, with and without: ``python benchmarks/outliers.py [--sequences 64]``.

Training-free conversions of both small models: one threshold a tensor or a channel, products of gated FFNs rotated or not. The
QCFS model shows the error of the grid, the SNN (sigma-delta, T = 8, two neurons a channel, no Stage 2) what time adds. Writes
``benchmarks/results/outliers.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import fas
from fas.pipeline.load import load_ann
from fas.report.results import versions
from fas.runtime.control import as_qcfs
from fas.tasks.language_modeling import encode_blocks, evaluate, evaluate_spiking, spread
from fas.tasks.text import load_text

RESULTS = Path(__file__).parent / "results" / "outliers.json"


def row(
    model_name: str, data: str, length: int, levels: int, settings: dict[str, Any], sequences: int
) -> dict[str, Any]:
    """Losses in nats per token of one conversion."""
    model, tokenizer = load_ann(model_name, "cpu")
    text = load_text(data)
    training, evaluation = (encode_blocks(tokenizer, part, length) for part in (text.training, text.evaluation))
    evaluation = spread(evaluation, sequences)
    ann = evaluate(model, evaluation, 8).loss
    batches = [{"input_ids": batch} for batch in spread(training, 32).split(8)]
    fas.convert(
        fas.prepare(model, fas.SpikingConfig(levels=levels, timesteps=8, neurons_per_channel=2, **settings), batches)
    )
    with as_qcfs(model):
        quantized = evaluate(model, evaluation, 8).loss
    return {"ann": ann, "qcfs": quantized, "snn": evaluate_spiking(model, evaluation, 4).loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--babyllama", required=True, help="folder of the small LLaMA")
    parser.add_argument("--stories", required=True, help="its text")
    parser.add_argument("--sequences", type=int, default=64, help="of 256 tokens")
    parser.add_argument("--coverage", nargs="+", default=["linear", "attention", "full"])
    args = parser.parse_args()
    models = {"builtin": ("builtin", "builtin", 128, 8), "babyllama": (args.babyllama, args.stories, 256, 15)}
    rows = []
    for name, (place, data, length, levels) in models.items():
        for coverage in args.coverage:
            # the built-in model has no gated FFN, so nothing to rotate
            for scales, rotation in [("tensor", "none"), ("channel", "none")] + [("channel", "hadamard")] * (
                name != "builtin"
            ):
                torch.manual_seed(0)
                settings = {"coverage": coverage, "scales": scales, "rotation": rotation}
                found = {
                    "model": name,
                    **settings,
                    **row(place, data, length, levels, settings, args.sequences * 256 // length),
                }
                rows.append(found)
                print(found, flush=True)
    command = "python benchmarks/outliers.py --babyllama FOLDER --stories FILE --sequences " + str(args.sequences)
    record = {"command": command, "seed": 0, "versions": versions(), "rows": rows}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    sys.stdout.write(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Loss above the ANN's, as a markdown table."""
    lines = ["| model | coverage | threshold a | rotation | ANN | QCFS | SNN, T = 8 |", "|---|---|---|---|---|---|---|"]
    for entry in rows:
        cells = [entry["model"], f"`{entry['coverage']}`", entry["scales"], entry["rotation"], f"{entry['ann']:.4f}"]
        cells += [f"+{entry[name] - entry['ann']:.4f}" for name in ("qcfs", "snn")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
