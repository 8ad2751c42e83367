"""What a synchronous simulation costs: time over T, tokens and parameters, and memory beside the ANN's.

    python benchmarks/cost.py [--rounds 3] [--only time|memory|fit]

Time: of the processor, in one thread (others may be at work beside it), for a prefill of one sequence through GPT-2 of random
weights, medians of rounds that each go through the whole grid; fitted with a·layers + b·T·tokens·parameters (relative errors
count), and what is left without the first term with a power law. Parameters are those of the blocks, which are read for each
token. Memory: the most bytes of tensors alive at once during a forward, without weights and with one row of logits.
Writes ``benchmarks/results/cost.json``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ledger_overhead import live
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

import fas
from fas.pipeline.load import load_ann, pick_device
from fas.report.results import this_command, versions
from fas.runtime.control import at_time
from fas.storage import write_whole

RESULTS = Path(__file__).parent / "results" / "cost.json"
SEED, LEVELS = 0, 8
COVERAGES = ("ffn", "linear")
TIMESTEPS, TOKENS, LAYERS, WIDTHS = (1, 2, 4, 8, 16), (32, 64, 128, 256), (2, 4, 6), (256, 384, 512)


def random_model(layers: int, width: int, words: int) -> PreTrainedModel:
    torch.manual_seed(SEED)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64, vocab_size=words, n_positions=1024)
    return AutoModelForCausalLM.from_config(config).eval()


def converted(ann: PreTrainedModel, coverage: Any, ids: Tensor) -> PreTrainedModel:
    config = fas.SpikingConfig(coverage=coverage, levels=LEVELS, timesteps=LEVELS)
    return fas.convert(fas.prepare(copy.deepcopy(ann), config, [{"input_ids": ids}])).eval()


def prefill(model: PreTrainedModel, ids: Tensor) -> Callable[[], Any]:
    return lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1)


@torch.no_grad()
def times(rounds: int) -> list[dict[str, Any]]:
    ids = torch.randint(1000, (1, max(TOKENS)), generator=torch.Generator().manual_seed(SEED))
    models = {}
    for layers, width, coverage in itertools.product(LAYERS, WIDTHS, COVERAGES):
        ann = random_model(layers, width, 1000)
        parameters = sum(weight.numel() for weight in ann.transformer.h.parameters())
        with torch.enable_grad():
            models[layers, width, coverage] = converted(ann, coverage, ids), parameters
    seconds: dict[Any, list[float]] = {}
    for number in range(-1, rounds):  # the first warms up
        for shape, (model, _) in models.items():
            for timesteps, tokens in itertools.product(TIMESTEPS, TOKENS):
                if number < 0 and (timesteps, tokens) != (TIMESTEPS[-1], TOKENS[-1]):
                    continue
                with at_time(model, timesteps=timesteps):
                    start = time.process_time()
                    prefill(model, ids[:, :tokens])()
                    took = time.process_time() - start
                if number >= 0:
                    seconds.setdefault((*shape, timesteps, tokens), []).append(took)
        print(f"round {number + 1} of {rounds}", flush=True)
    return [
        {
            "coverage": coverage, "layers": layers, "width": width, "parameters": models[layers, width, coverage][1],
            "timesteps": timesteps, "tokens": tokens, "seconds": statistics.median(took),
            "seconds_min": min(took), "seconds_max": max(took),
        }
        for (layers, width, coverage, timesteps, tokens), took in seconds.items()
    ]  # fmt: skip


def fitted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The fits of the rows of one coverage, with R² and the median of |error| / seconds."""
    names = ("timesteps", "tokens", "parameters")
    x = torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.float64)
    layers = torch.tensor([row["layers"] for row in rows], dtype=torch.float64)
    channels = layers * torch.tensor([row["width"] for row in rows])
    seconds = torch.tensor([row["seconds"] for row in rows], dtype=torch.float64)
    terms = {"layer": layers, "timestep · token · parameter": x.prod(1)}
    # what is left when Python has called each layer; below that, rows say more of Python than of the work
    a, b = solved(list(terms.values()), seconds)
    large = x.prod(1) * b > a * layers
    left = seconds[large] - a * layers[large]
    logs = torch.cat([torch.ones_like(left)[:, None], x[large].log()], 1)
    powers = torch.linalg.lstsq(logs, left.log()[:, None]).solution.flatten()
    return {
        "linear": linear(terms, seconds),
        "linear_with_neurons": linear(
            terms | {"timestep · token · layer · channel": x[:, 0] * x[:, 1] * channels}, seconds
        ),
        "power": dict(zip(names, powers[1:].tolist(), strict=True))
        | {"rows": len(left), "of": "seconds without those of the layers, where they are less than half"}
        | errors(left, (logs @ powers).exp(), logs=True),
        "noise": statistics.median((row["seconds_max"] - row["seconds_min"]) / row["seconds"] for row in rows),
    }


def solved(terms: list[Tensor], seconds: Tensor) -> Tensor:
    """Factors of ``terms`` by least squares of the relative errors."""
    columns = torch.stack(terms, 1) / seconds[:, None]
    return torch.linalg.lstsq(columns, torch.ones_like(seconds)[:, None]).solution.flatten()


def linear(terms: dict[str, Tensor], seconds: Tensor) -> dict[str, Any]:
    factors = solved(list(terms.values()), seconds)
    found = torch.stack(list(terms.values()), 1) @ factors
    return {
        "seconds_a": dict(zip(terms, factors.tolist(), strict=True)),
        "rows": len(seconds),
        **errors(seconds, found),
    }


def errors(y: Tensor, found: Tensor, logs: bool = False) -> dict[str, float]:
    left, right = (y.log(), found.log()) if logs else (y, found)
    r2 = 1 - (left - right).square().sum() / (left - left.mean()).square().sum()
    return {"r2": float(r2), "relative_error_median": float(((found - y).abs() / y).median())}


@torch.no_grad()
def memory() -> list[dict[str, Any]]:
    rows = []
    models = {"builtin": (load_ann("builtin", "cpu")[0], 4), "GPT-2 small, 4 layers": (random_model(4, 768, 50257), 1)}
    for name, (ann, sequences) in models.items():
        ids = torch.randint(5, 1000, (sequences, 128), generator=torch.Generator().manual_seed(SEED))
        dense = {}
        for attention in ("sdpa", "eager"):
            ann.set_attn_implementation(attention)
            prefill(ann, ids)()
            dense[attention] = live(prefill(ann, ids))
        for coverage in ("ffn", "linear", "attention", "full"):
            with torch.enable_grad():
                model = converted(ann, coverage, ids)
            for timesteps in (1, 2, 4, 8):
                with at_time(model, timesteps=timesteps):
                    prefill(model, ids)()
                    taken = live(prefill(model, ids))
                rows.append(
                    {
                        "model": name, "sequences": sequences, "tokens": 128, "coverage": coverage, "timesteps": timesteps,
                        "bytes": taken, "ann_bytes": dense, "ratio": taken / dense["eager"],
                        "ratio_to_fused_attention": taken / dense["sdpa"], "allowed": 1 + timesteps,
                    }
                )  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("time", "memory", "fit"))
    args = parser.parse_args()
    pick_device("cpu")
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if args.only else {}
    if args.only != "fit":
        found |= {
            "seed": SEED, "coding": "sigma_delta", "levels": LEVELS, "rounds": args.rounds, "threads": 1,
            "float32_matmul_precision": torch.get_float32_matmul_precision(), "versions": versions(),
            "command": this_command(),
        }  # fmt: skip
    if args.only in (None, "memory"):
        found["memory"] = memory()
    if args.only in (None, "time"):
        found["time"] = times(args.rounds)
    found["fit"] = {c: fitted([row for row in found["time"] if row["coverage"] == c]) for c in COVERAGES}
    print(json.dumps(found["fit"], indent=1))
    write_whole(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
