"""What ``fas bench`` times of neurons alone: against a copy, a loop over time, and SpikingJelly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fas.config import SpikingConfig
from fas.neurons import rate_mean_rows, sigma_delta
from fas.neurons.fused import kernels_for
from fas.neurons.qcfs import grid
from fas.pipeline.bench import BenchOptions, Case
from fas.progress import Progress

NEURONS = (8, 128, 3072)
"""Sequences, tokens and channels: the FFN of GPT-2 small."""


def neuron_cases(options: BenchOptions, progress: Progress) -> Iterator[Case]:
    """The neurons alone, for each T, in a buffer that stays."""
    if "neuron" in options.what:
        for timesteps in options.timesteps:
            yield from _neurons(options, timesteps, progress)


def _neurons(options: BenchOptions, timesteps: int, progress: Progress) -> Iterator[Case]:
    """The neuron alone, into a buffer that stays, against a copy of its input, a loop over time, and SpikingJelly's."""
    x = torch.randn(timesteps, *NEURONS, generator=torch.Generator().manual_seed(options.seed))
    x = x.to(options.device)
    scale, half = x.new_ones(NEURONS[-1]), x.new_full((NEURONS[-1],), 0.5)
    nothing, buffer, level = torch.zeros_like(half), torch.empty_like(x), options.levels
    steps = SpikingConfig(levels=level, timesteps=timesteps).step_schedule
    kernels = kernels_for(x, scale)
    ways: dict[str, Callable[[], Any]] = {
        "sigma_delta": lambda: kernels.track(
            x, scale / level, half, nothing, [float(k) for k in steps], grid(level, True), [0.0] * len(steps), False, buffer
        ) if kernels else sigma_delta(x, scale, half, nothing, steps, level, True, told=False),
        "rate": lambda: kernels.fire(x, scale, half, True, True, False, buffer) if kernels
        else rate_mean_rows(x, scale, half, True, told=False),
    }  # fmt: skip
    others = {"copy": lambda: buffer.copy_(x), "naive": lambda: step_loop(x, scale)}
    if (peer := _spikingjelly(progress)) is not None:
        others["spikingjelly"] = lambda: peer(x)
    for coding in options.codings:
        for against, other in others.items():
            with torch.no_grad():
                yield Case(
                    "neuron", against, ways[coding], other, coding=coding, schedule="synchronous", timesteps=timesteps
                )


def step_loop(x: Tensor, threshold: Tensor) -> Tensor:
    """Integrate-and-fire as most code runs it: step by step in PyTorch, v₀ = θ/2, soft reset."""
    v, spikes = threshold.expand_as(x[0]) * 0.5, []
    for step in x:
        v = v + step
        spike = (v >= threshold).to(x.dtype)
        v = v - spike * threshold
        spikes.append(spike * threshold)
    return torch.stack(spikes)


def _spikingjelly(progress: Progress) -> Callable[[Tensor], Any] | None:
    try:
        from spikingjelly.activation_based import functional, neuron  # type: ignore[import-not-found]
    except ImportError:
        progress.note("SpikingJelly is not installed (pip install --no-deps spikingjelly==2.0.0), so it is not timed")
        return None
    node = neuron.HalfThresholdIFNode(1.0, step_mode="m")

    def run(x: Tensor) -> Any:
        functional.reset_net(node)
        with torch.no_grad():
            return node(x)

    return run
