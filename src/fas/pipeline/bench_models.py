"""Models for ``fas bench``: random weights whose neurons fire as often as those of a trained model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel, set_seed

from fas.errors import ConfigError
from fas.pipeline.load import load_ann
from fas.runtime.control import sites_of
from fas.runtime.spikes import counting

RANDOM = "GPT-2 small, random weights"
FIRING = {"attention_input": 2.47, "attention_output": 2.60, "ffn_input": 2.61, "ffn_hidden": 0.46}
"""Spikes per neuron of the embedded model as ``fas demo`` converts it (`linear`, sigma-delta, L = T = 8; docs/log.md)."""
ROUNDS = 12
POSITIONS, DECODED = 1024, 2
"""Of GPT-2, and tokens that are written behind a prompt."""
EAGER_LENGTH = 1024
"""Up to here attention by plain products is the faster one on a CPU, for both sides."""


def bench_ann(
    model: str | None, length: int, seed: int, activation: str = "gelu_new", behind: int = 0
) -> PreTrainedModel:
    """The ANN to be timed: ``model``, or with None a GPT-2 small (124 M) of random weights, with another ``activation``.

    Raises `ConfigError` if ``length`` tokens and those ``behind`` them are more than its positions.
    """
    set_seed(seed)
    attention = "eager" if length <= EAGER_LENGTH else "sdpa"
    if model is None:
        config = GPT2Config(activation_function=activation, n_positions=max(POSITIONS, length + behind))
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    ann, _ = load_ann(model, "cpu")
    positions = getattr(ann.config, "max_position_embeddings", None)
    if positions is not None and length + behind > positions:
        raise ConfigError(
            f"length={length} and {behind} tokens behind it are more than the {positions} positions of {model}; take at most "
            f"{positions - behind}"
        )
    ann.set_attn_implementation(attention)
    return ann


@torch.no_grad()
def keep_active(ann: Any, ids: Tensor, share: float) -> None:
    """Lower the biases in front of a GPT-2's activations until ``share`` of them are above 0 on ``ids``, layer by layer."""

    def lower(module: Any, args: Any, out: Tensor) -> Tensor:
        excess = out.flatten().kthvalue(int((1 - share) * out.numel())).values
        module.bias -= excess
        return out - excess

    handles = [block.mlp.c_fc.register_forward_hook(lower) for block in ann.transformer.h]
    try:
        ann(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def fire_like_a_trained_model(snn: Any, ids: Tensor) -> dict[str, float]:
    """Scale the thresholds of a random model's sites until each kind fires as `FIRING` says; what they then do.

    Random weights under fitted scales fire up to four times as often as trained ones.
    """
    for _ in range(ROUNDS):
        told = firing(snn, ids)
        for name, site in sites_of(snn).items():
            if (wanted := FIRING.get(kind_of(name))) is not None:
                site.log_scale.data += 0.5 * math.log(max(0.1, min(10, told[kind_of(name)] / wanted)))
    return firing(snn, ids)


def firing(snn: Any, ids: Tensor) -> dict[str, float]:
    """Spikes per neuron of each kind of site."""
    with counting(snn) as count:
        snn(input_ids=ids, use_cache=False)
    kinds: dict[str, list[float]] = {}
    for name, site in count.sites.items():
        kinds.setdefault(kind_of(name), []).append(site.per_neuron)
    return {kind: sum(values) / len(values) for kind, values in kinds.items()}


def kind_of(name: str) -> str:
    """``ffn_hidden`` of ``transformer.h.3.ffn_hidden``."""
    return name.rsplit(".", 1)[-1]
