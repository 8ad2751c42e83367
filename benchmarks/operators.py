"""What spiking operator groups cost in accuracy: ``python benchmarks/operators.py [--rows 32] [--seed 0]``, minutes on a CPU.

For constant inputs, with L = 15 and 8 (sigma_delta, default schedules) and rate, T = 8, 16, 32: the error of every group over
its range, of softmax over 64 … 4096 Gaussian scores and of norms, beside what the exactly evaluated groups have. Writes
``benchmarks/results/operators.json`` and prints the tables of docs/operators.md.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fas.config import SpikingConfig
from fas.neurons import Clock, Site
from fas.operators import (
    Evaluation,
    Group,
    Kind,
    SpikingGroup,
    activation,
    activation_group,
    exp2_group,
    exp2_negative,
    layer_norm,
    reciprocal,
    reciprocal_group,
    rms_norm,
    rsqrt,
    rsqrt_group,
    softmax,
)
from fas.report.results import this_command, versions
from fas.storage import write_whole

RESULTS = Path(__file__).parent / "results" / "operators.json"
KEYS, SIGMAS, HEAD, WIDTH, EPS = (64, 256, 1024, 4096), (1, 2, 4), 64, 768, 1e-6
MOVING_KEYS, MOVING_SIGMA = 1024, 2
VARIANTS: dict[str, tuple[int, int, int | None]] = {
    "4, 8, L as operands": (4, 8, None),
    "4, 16, 8": (4, 16, 8),
    "8, 16, 8": (8, 16, 8),
    "8, 16, 4": (8, 16, 4),
    "8, 16, 2": (8, 16, 2),
    "16, 16, 1": (16, 16, 1),
}


@dataclass
class Setting:
    """One way to evaluate a group: exactly (no clock), or by the neurons of a clock, whose spikes are counted."""

    name: str
    clock: Clock | None = None

    def __post_init__(self) -> None:
        self.spikes = self.neurons = 0
        if self.clock is not None:
            self.clock.probe = self._count

    def _count(self, _: str, spikes: Tensor) -> None:
        self.spikes += int(spikes.count_nonzero())
        self.neurons += spikes[0].numel()

    def group(self, group: Group, levels: int | None = None) -> Evaluation:
        return group if self.clock is None else SpikingGroup(group, "group", self.clock, levels)

    def rows(self, x: Tensor) -> Tensor:
        """``x`` at every timestep, ``[T·B, …]``."""
        return x if self.clock is None else x.repeat(self.clock.config.timesteps, *[1] * (x.ndim - 1))

    def encoded(self, x: Tensor, spread: float) -> Tensor:
        """``x`` over time as a site of 3.5 standard deviations has it, ``[T·B, …]``."""
        if self.clock is None:
            return x
        site = Site("operand", x.shape[-1], signed=True, consumers=1, clock=self.clock)
        site.log_scale.data.fill_(math.log(3.5 * spread))
        return site(self.rows(x))

    def take_spikes(self) -> float | None:
        rate = self.spikes / self.neurons if self.neurons else None
        self.spikes = self.neurons = 0
        return rate


def settings(times: tuple[int, ...] = (8, 16, 32)) -> Iterator[Setting]:
    yield Setting("exact")
    for coding, levels in (("sigma_delta", 15), ("sigma_delta", 8), ("rate", 15)):
        for timesteps in times:
            config = SpikingConfig(coding=coding, levels=levels, timesteps=timesteps)
            name = f"rate T={timesteps}" if coding == "rate" else f"L={levels} T={timesteps}"
            yield Setting(name, Clock(config, stage="snn", depth=1))


@dataclass
class Function:
    name: str
    group: Group
    even: Group
    """The same with equally wide segments."""
    apply: Callable[[Tensor, Evaluation], Tensor]
    exact: Callable[[Tensor], Tensor]
    low: float
    high: float


def functions() -> list[Function]:
    even = {"evenness": 1e9}
    found = [
        Function("2^-u", exp2_group(), exp2_group(**even), exp2_negative, lambda u: (-u).exp2(), 0, 2),
        Function("1/s", reciprocal_group(), reciprocal_group(**even), reciprocal, lambda s: 1 / s, 1, 4),
        Function("1/√v", rsqrt_group(), rsqrt_group(**even), rsqrt, torch.rsqrt, 1, 16),
    ]
    wholes: dict[Kind, Callable[[Tensor], Tensor]] = {
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "silu": functional.silu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
    for kind, whole in wholes.items():
        group = activation_group(kind)
        reach = (group.corners[-1] + group.widths[-1]).item()
        apply = partial(activation, kind=kind)
        found.append(Function(kind, group, activation_group(kind, **even), apply, whole, -reach, reach))
    return found


def group_rows(settings: list[Setting]) -> list[dict[str, Any]]:
    """Root mean square and largest error over the range of a group (both octaves), and spikes per neuron."""
    rows = []
    for function in functions():
        x = torch.linspace(function.low, function.high, 8193)[:-1]
        exact = function.exact(x.double())
        even = function.apply(x.double(), function.even) - exact
        row: dict[str, Any] = {
            "function": function.name,
            "neurons": function.group.neurons,
            "even_max": even.abs().max().item(),
        }
        for setting in settings:
            out = function.apply(setting.rows(x), setting.group(function.group))[-len(x) :]
            error = out - exact
            row[setting.name] = {
                "rmse": error.square().mean().sqrt().item(),
                "max": error.abs().max().item(),
                "spikes_per_neuron": setting.take_spikes(),
            }
        rows.append(row)
    return rows


def softmax_rows(settings: list[Setting], rows: int, seed: int) -> list[dict[str, Any]]:
    """Total variation from the true softmax and from that of exact groups (``added``), and the worst row sum."""
    exp, inverse, found = exp2_group(), reciprocal_group(), []
    for keys in KEYS:
        for sigma in SIGMAS:
            scores = sigma * torch.randn(rows, keys, generator=torch.Generator().manual_seed(seed))
            true, by_groups = scores.double().softmax(-1), softmax(scores, exp, inverse)
            row: dict[str, Any] = {"keys": keys, "sigma": sigma}
            for setting in settings:
                p = softmax(setting.rows(scores), setting.group(exp), setting.group(inverse))[-rows:]
                variation, sums = (p - true).abs().sum(-1) / 2, p.sum(-1)
                row[setting.name] = {
                    "tv": variation.mean().item(),
                    "tv_max": variation.max().item(),
                    "tv_added": ((p - by_groups).abs().sum(-1) / 2).mean().item(),
                    "row_sum_error": (sums - 1).abs().max().item(),
                    "spikes_per_neuron": setting.take_spikes(),
                }
            found.append(row)
    return found


def moving_rows(settings: list[Setting], rows: int, seed: int) -> list[dict[str, Any]]:
    """Softmax of scores that move: products of queries and keys that are themselves being encoded over the same time.

    Against the true softmax of the scores of the last timestep, so that only the softmax's own error counts; for groups of
    `VARIANTS`: neurons of 2^-u, neurons of 1/s, levels (None: those of the operands, and their schedule).
    """
    found = []
    for setting in settings:
        generator = torch.Generator().manual_seed(seed)
        query, key = (torch.randn(1, n, HEAD, generator=generator) for n in (rows, MOVING_KEYS))
        scores = setting.encoded(MOVING_SIGMA * query, MOVING_SIGMA) @ setting.encoded(key, 1).mT / HEAD**0.5
        true = scores[-1].double().softmax(-1)
        row: dict[str, Any] = {"operands": setting.name, "keys": MOVING_KEYS, "sigma": MOVING_SIGMA}
        for name, (exp_neurons, other_neurons, levels) in VARIANTS.items():
            setting.take_spikes()
            exp = setting.group(exp2_group(exp_neurons), levels)
            p = softmax(scores, exp, setting.group(reciprocal_group(other_neurons), levels))[-1]
            variation = (p - true).abs().sum(-1) / 2
            row[name] = {
                "tv": variation.mean().item(),
                "tv_max": variation.max().item(),
                "row_sum_error": (p.sum(-1) - 1).abs().max().item(),
                # those of 1/s, one group a row, are counted with those of 2^-u, one a score
                "spikes_per_score": setting.spikes / (rows * MOVING_KEYS),
            }
        found.append(row)
    return found


def norm_rows(settings: list[Setting], seed: int) -> list[dict[str, Any]]:
    """Relative error ‖y − y*‖/‖y*‖ of rows whose scales lie evenly over 1e-3 … 1e3."""
    generator, group, found = torch.Generator().manual_seed(seed), rsqrt_group(), []
    x = torch.randn(1024, WIDTH, generator=generator) * torch.logspace(-3, 3, 1024)[:, None]
    weight = 1 + 0.2 * torch.randn(WIDTH, generator=generator)
    wide, wide_weight = x.double(), weight.double()
    kinds: dict[str, tuple[Callable[[Tensor, Evaluation], Tensor], Tensor]] = {
        "RMSNorm": (lambda x, g: rms_norm(x, weight, EPS, g), functional.rms_norm(wide, (WIDTH,), wide_weight, EPS)),
        "RMSNorm, 1 + w": (
            lambda x, g: rms_norm(x, weight - 1, EPS, g, 1), functional.rms_norm(wide, (WIDTH,), wide_weight, EPS)
        ),
        "LayerNorm": (
            lambda x, g: layer_norm(x, weight, None, EPS, g), functional.layer_norm(wide, (WIDTH,), wide_weight, None, EPS)
        ),
    }  # fmt: skip
    for name, (apply, exact) in kinds.items():
        row: dict[str, Any] = {"norm": name}
        for setting in settings:
            error = (apply(setting.rows(x), setting.group(group))[-len(x) :] - exact).norm(dim=-1) / exact.norm(dim=-1)
            row[setting.name] = {
                "mean": error.mean().item(), "max": error.max().item(), "spikes_per_neuron": setting.take_spikes()
            }  # fmt: skip
        found.append(row)
    return found


def table(
    rows: list[dict[str, Any]], heads: dict[str, str], names: list[str], cell: Callable[[dict[str, Any]], str]
) -> str:
    lines = [[*heads.values(), *names]]
    lines += [[_text(row[key]) for key in heads] + [cell(row[name]) for name in names] for row in rows]
    return "\n".join(["| " + " | ".join(line) + " |" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:])])


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def print_tables(found: dict[str, Any], names: list[str]) -> None:
    def tv(cell: dict[str, Any]) -> str:
        return f"{cell['tv']:.4f} ({cell['row_sum_error']:.4f})"

    heads = {"function": "function", "neurons": "N", "even_max": "equal widths"}
    print(table(found["groups"], heads, names, lambda c: f"{c['rmse']:.4f} ({c['max']:.4f})"), "\n")
    spikes = {"function": "spikes per neuron"}
    print(table(found["groups"], spikes, names[1:], lambda c: f"{c['spikes_per_neuron']:.2f}"), "\n")
    print(table(found["softmax"], {"keys": "n", "sigma": "σ"}, names, tv), "\n")
    moving = table(
        found["softmax_moving"], {"operands": "operands"}, list(VARIANTS),
        lambda c: f"{tv(c)} {c['spikes_per_score']:.1f}",
    )  # fmt: skip
    print(moving, "\n")
    print(table(found["norms"], {"norm": "norm"}, names, lambda c: f"{100 * c['mean']:.2f} ({100 * c['max']:.2f})"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32, help="rows of every softmax")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # rate and short schedules warn of what is measured here
    with torch.no_grad():
        ways, seed = list(settings()), args.seed
        found: dict[str, Any] = {
            "seed": seed, "versions": versions(), "command": this_command(), "rows": args.rows,
            "groups": group_rows(ways),
            "softmax": softmax_rows(ways, args.rows, seed),
            "softmax_moving": moving_rows(list(settings((4, 8, 16, 32)))[1:], args.rows, seed),
            "norms": norm_rows(ways, seed),
        }  # fmt: skip
    write_whole(RESULTS, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    print_tables(found, [way.name for way in ways])


if __name__ == "__main__":
    main()
