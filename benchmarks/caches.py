"""What the settled cache costs in quality: ``python benchmarks/caches.py [--model runs/demo/model]`` after ``fas demo``.

Text is read as a model that writes reads its own: a prompt at once, then token by token behind a cache, exact or settled.
Perplexity of the tokens behind the prompt, in ``benchmarks/results/caches.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import fas
from fas.pipeline.load import load_spiking
from fas.report.results import this_command, versions
from fas.storage import write_whole
from fas.tasks.language_modeling import encode_blocks, spread
from fas.tasks.text import load_text

RESULTS = Path(__file__).parent / "results" / "caches.json"
TIMES = (("sigma_delta", 2), ("sigma_delta", 4), ("sigma_delta", 8), ("rate", 2), ("rate", 4), ("rate", 8))
LENGTH, PROMPT = 128, 32


@torch.no_grad()
def perplexity(model: Any, blocks: Tensor) -> float:
    """Of what stands behind the prompts of ``blocks`` ``[N, S]``, each token behind a cache of those before."""
    said, losses = model(input_ids=blocks[:, :PROMPT], use_cache=True), []
    for one in blocks[:, PROMPT:].split(1, 1):
        losses.append(float(cross_entropy(said.logits[:, -1], one[:, 0])))
        said = model(input_ids=one, past_key_values=said.past_key_values, use_cache=True)
    return math.exp(sum(losses) / len(losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="runs/demo/model", help="a converted folder")
    parser.add_argument("--data", default="builtin", help="text to read")
    parser.add_argument("--sequences", type=int, default=128, help=f"of {LENGTH} tokens")
    args = parser.parse_args()
    model, tokenizer = load_spiking(args.model)
    blocks = spread(encode_blocks(tokenizer, load_text(args.data).evaluation, LENGTH), args.sequences)
    rows = []
    for coding, timesteps in TIMES:
        for cache in ("exact", "settled"):
            model.set_timesteps(timesteps, coding=coding, cache=cache)
            start = time.perf_counter()
            with fas.accelerated(model):
                found = perplexity(model, blocks)
            rows.append({"coding": coding, "timesteps": timesteps, "cache": cache, "perplexity": found})
            print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
    about = {"sequences": len(blocks), "length": LENGTH, "prompt": PROMPT, "seed": 0}
    values = about | {"versions": versions(), "command": this_command(), "rows": rows}
    write_whole(RESULTS, json.dumps(values, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
