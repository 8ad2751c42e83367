"""What tests of adaptive T share: models that settle early, their inputs, and the trains of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fas.runtime.control import clock_of

T = 24
LONG = {"timesteps": T, "levels": 8, "steps": (4, 4, 2, 2, *(1,) * 20)}
WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("gpt2", "linear", LONG),
    "opt": ("opt", "ffn", LONG),
    "llama": ("llama", "attention", LONG),
    "gpt2 full": ("gpt2", "full", {"timesteps": 24, "levels": 3, "steps": (1,) * 24}),
    "two neurons a channel": ("gpt2", "linear", {"timesteps": 12, "levels": 8, "neurons_per_channel": 2}),
    "classifier": ("bert_sequence", "linear", LONG),
    "choices": ("bert_choice", "linear", LONG),
    "images": ("vit_image", "linear", LONG),
}
ways = pytest.mark.parametrize("way", WAYS)

CODINGS: dict[str, dict[str, Any]] = {
    "sigma_delta": {"timesteps": 6, "levels": 8, "steps": (4, 2, 2, 1, 1, 1)},
    "rate": {"coding": "rate", "timesteps": 6, "levels": 8},
    "step": {"coding": "rate", "rows": "step", "timesteps": 6, "levels": 8},
}


def model_of(way: str) -> PreTrainedModel:
    family, coverage, own = WAYS[way]
    return tiny.exact(tiny.snn(family, coverage, **own))


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Trains:
    """Keeps the spikes of all sites."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Tensor, Tensor | None]] = []
        self.clock: Any = None

    def __call__(self, name: str, spikes: Tensor) -> None:
        self.found.append((name, spikes != 0, self.clock.visible))


def trains(model: PreTrainedModel, **inputs: Tensor) -> tuple[Any, list[tuple[str, Tensor]]]:
    """What the full run gives, and its spikes ``[T, B, …]`` by site (masked probabilities never fire)."""
    probe, clock = Trains(), clock_of(model)
    probe.clock, clock.probe = clock, probe
    try:
        return model(**inputs), [(name, fired) for name, fired, _ in probe.found]
    finally:
        clock.probe = None


def tiny_inputs(model: PreTrainedModel, batch: int = 3, length: int = 3, seed: int = 1) -> dict[str, Tensor]:
    return {model.main_input_name: tiny.inputs_for(model, batch, length, seed)[model.main_input_name]}
