"""Timings as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fas.report.inspection_text import aligned

TITLES = ("what", "coverage", "coding", "schedule", "T", "dtype", "ms", "against", "ms", "ratio", "least–most")


def as_table(results: Mapping[str, Any]) -> str:
    """One line a ratio, and what the figures depend on below."""
    table = [TITLES, *(_line(row, results["model"]) for row in results["rows"])]
    about = (
        f"{results['model']}, {results['length']} tokens, L = {results['levels']}, {results['threads']} threads; medians of "
        f"{results['rounds']} rounds; fp32 products at {results['float32_matmul_precision']!r} precision, spikes' with "
        + " and ".join(_weights(*entry) for entry in results["integer_bits"].items())
        + ("" if results["compiled_neurons"] else "; neurons in PyTorch, no compiler was found")
        + _paths(results)
    )
    return "\n".join([*aligned(table), "", about])


def _paths(results: Mapping[str, Any]) -> str:
    """Which instructions and products ran; results of earlier versions do not say."""
    sets = results.get("instruction_sets")
    if sets is None:
        return ""
    words = {"compiled_for": "kernels for {}", "compiled_lanes": "of {} floats", "pytorch": "PyTorch's for {}"}
    told = [words.get(name, name.upper() + "={}").format(value) for name, value in sets.items()]
    products = [f"{path} products in {dtype}" for dtype, path in results["integer_products"].items()]
    return "; " + ", ".join([*products, *told])


def _weights(dtype: str, bits: int) -> str:
    return f"weights of {bits} bits in {dtype}" if bits else f"weights as they are in {dtype}"


def _line(row: Mapping[str, Any], model: str) -> tuple[str, ...]:
    layerwise = row["schedule"] == "layerwise"
    times = "" if layerwise or row["timesteps"] is None else str(row["timesteps"])
    what = row["what"].replace("_", " ")
    if row.get("model") not in (None, model):  # "GPT-2 small, random weights, ReLU, 3% active"
        what += f" ({row['model'].removeprefix(model).strip(', ')})"
    what += ", settled cache" if row.get("cache") == "settled" else ""
    told = [what, row["coverage"], row["coding"], row["schedule"], times, row["dtype"]]
    spread = f"{row['ratio_min']:.2f}–{row['ratio_max']:.2f}"
    figures = [f"{row['milliseconds']:.1f}", row["against"], f"{row['milliseconds_against']:.1f}"]
    return tuple([value or "" for value in told] + figures + [f"×{row['ratio']:.3g}", spread])
