"""Toy models whose operations can be counted by hand, and neurons written as plain loops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fas.models.family import REGISTRY, Family, SiteSpec, register
from fas.models.shapes import attention


class ToyConfig(PreTrainedConfig):
    model_type = "fas_toy"
    hidden_size = 4
    num_attention_heads = 2
    outputs = 3
    attends = False


class ToyLinear(nn.Module):
    """One linear layer with a bias."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.outputs)

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return self.linear(inputs_embeds)


class ToyProducts(nn.Module):
    """The two products of attention, without any projection."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        split = x.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)
        return function(self, split, split, split, None)[0].flatten(2)


def eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **_: Any) -> tuple[Tensor, Tensor]:
    shares = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    return (shares @ value).transpose(1, 2), shares


class ToyAttention(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.products = ToyProducts(config)

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return self.products(inputs_embeds)


class ToyModel(PreTrainedModel):
    config_class = ToyConfig
    main_input_name = "inputs_embeds"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.body = (ToyAttention if config.attends else ToyLinear)(config)
        self.post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(self, inputs_embeds: Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.body(inputs_embeds=inputs_embeds))


@contextmanager
def toy_families() -> Iterator[None]:
    """FAS knows the toys, for the length of the context."""
    families = (
        Family(name="toy_linear", segment="ToyLinear", segment_sites=(SiteSpec("input", ("linear",)),)),
        Family(
            name="toy_attention",
            segment="ToyAttention",
            segment_sites=attention("products"),
            analog=frozenset({"ToyProducts"}),
        ),
    )
    for family in families:
        register(family)
    try:
        yield
    finally:
        for family in families:
            del REGISTRY[family.segment]


def toy(attends: bool) -> ToyModel:
    torch.manual_seed(0)
    config = ToyConfig()
    config.attends = attends
    return ToyModel(config).eval().double()


def fire(rows: np.ndarray, scale: np.ndarray, signed: bool, levels: int, coding: str, steps: list[int]) -> np.ndarray:
    """Spikes ``[T, …, C]`` of the running values ``rows`` ``[T, …, C]``, value by value, timestep by timestep."""
    spikes = np.zeros(rows.shape, dtype=int)
    for place in np.ndindex(*rows.shape[1:]):
        theta, level, potential, before = float(scale[place[-1]]), 0, float(scale[place[-1]]) / 2, 0.0
        for t in range(len(rows)):
            now = float(rows[(t, *place)])
            if coding == "sigma_delta":
                low = -levels if signed else 0
                goal = min(max(now / (theta / levels), low), levels)
                move = max(-1, min(1, math.floor((goal - level) / steps[t] + 0.5)))
                move = move if low <= level + steps[t] * move <= levels else 0
                level += steps[t] * move
            else:
                potential += (t + 1) * now - t * before
                move = 1 if potential >= theta else -1 if signed and potential < 0 else 0
                potential -= theta * move
            before, spikes[(t, *place)] = now, move
    return spikes


def running(spikes: np.ndarray, scale: np.ndarray, levels: int, coding: str, steps: list[int]) -> np.ndarray:
    """Running values that ``spikes`` ``[T, …, C]`` add up to."""
    if coding == "sigma_delta":
        return np.cumsum(spikes * np.array(steps).reshape(-1, *[1] * (spikes.ndim - 1)), 0) * scale / levels
    return np.cumsum(spikes, 0) / np.arange(1, len(spikes) + 1).reshape(-1, *[1] * (spikes.ndim - 1)) * scale
