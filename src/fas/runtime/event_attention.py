"""Attention products of the event executor, updated by increments instead of computed anew.

With increments q_t = Q_t − Q_{t−1} and k_t = K_t − K_{t−1}, the product of two running values is

    Q_t K_tᵀ = Q_{t−1} K_{t−1}ᵀ + Q_t k_tᵀ + q_t K_{t−1}ᵀ

and the output likewise, from probabilities and values. Where the operands spike (coverage ``attention``), Q and K are
integers, and q and k spikes with the weights of their timestep. θ of both, per feature, is folded into the running Q (a spike
of it adds that constant); θ of values and probabilities is multiplied behind their product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from fas.runtime.attention import by_channel, by_head, exponentials, normaliser, refuse_unknown
from fas.runtime.hooks import sites_on
from fas.runtime.prefix import prefix_of, visible_in_front

NAME = "fas_events"


class RunningProduct:
    """A_t·B_t of two running values, carried through time."""

    def __init__(self) -> None:
        self.past: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """Product at this timestep; ``left`` ``[…, M, K]`` and ``right`` ``[…, K, N]`` are the running values."""
        if self.past is None:
            product = left @ right
        else:
            last_left, last_right, last_product = self.past
            product = last_product + left @ (right - last_right) + (left - last_left) @ last_right
        self.past = (left, right, product)
        return product


class RunningAttention:
    """State of one attention module: its scores and its output as running products; the neurons of its operands."""

    def __init__(self) -> None:
        self.neurons: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        """Forget the products."""
        self.calls: list[tuple[RunningProduct, ...]] = []
        self.call = 0

    @property
    def has_run(self) -> bool:
        """Whether it has computed a product."""
        return bool(self.calls)

    def products(self) -> tuple[RunningProduct, ...]:
        """Of this call scores and output, and the same of the prefix: packed sequences are one call each, in the same order
        at every timestep."""
        if self.call == len(self.calls):
            self.calls.append(tuple(RunningProduct() for _ in range(4)))
        self.call += 1
        return self.calls[self.call - 1]

    def operand(self, role: str, x: Tensor, to_channels: Any) -> tuple[Tensor, Tensor, float]:
        """The running value of ``x`` ``[B, H, …, D]``, what a unit of it is worth ``[1, H, 1, D or 1]``, and over how many
        timesteps it is a mean.

        Of a spiking operand the value is an integer; an analog one is worth 1.
        """
        if role not in self.neurons:
            return x, torch.ones(1, x.shape[1], 1, 1, dtype=x.dtype, device=x.device), 1.0
        told: list[tuple[Tensor, float]] = []

        def fire(channels: Tensor) -> Tensor:
            running, unit, times = self.neurons[role].running(channels)
            told.append((unit.view(1, x.shape[1], 1, -1), times))
            return running

        return to_channels(fire, x), *told[0]


def connect(model: nn.Module, neurons: Mapping[str, Any]) -> None:
    """Give every attention module of ``model`` the neurons of its operands (by site name) in place of their sites."""
    for module in model.modules():
        for role, site in (module._modules.get("sites") or nn.ModuleDict()).items():  # type: ignore[union-attr]
            if getattr(site, "kind", None) in ("operand", "cross"):
                _state(module).neurons[role] = neurons[str(site.name)]


def _state(module: nn.Module) -> RunningAttention:
    return module.__dict__.setdefault("_running_attention", RunningAttention())


def start(model: nn.Module) -> None:
    """Forget all products, before the first timestep (before every one where rows carry single steps)."""
    for module in model.modules():
        if "_running_attention" in module.__dict__:
            _state(module).start()


def tick(model: nn.Module) -> None:
    """A new timestep begins."""
    for module in model.modules():
        if "_running_attention" in module.__dict__:
            _state(module).call = 0


def has_run(model: nn.Module) -> bool:
    """Whether any attention module of ``model`` has computed its products here."""
    return any("_running_attention" in module.__dict__ and _state(module).has_run for module in model.modules())


def event_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Transformers' contract: ``query`` ``[B, H, S, D]``, keys and values ``[B, Hkv, S, D]`` to ``[B, S, H, D]``.

    ``dropout`` is 0 wherever time is simulated. Raises `FasError` for an argument that it would have to ignore.
    """
    refuse_unknown(module, kwargs)
    state = _state(module)
    product_of_scores, product_of_output, prefix_scores, prefix_output = state.products()
    groups = query.shape[1] // key.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, query_worth, query_times = state.operand("query", query, by_channel)
    key, key_worth, key_times = state.operand("key", key, by_channel)
    value, value_worth, value_times = state.operand("value", value, by_channel)
    key, key_worth, value, value_worth = (
        entry.repeat_interleave(groups, dim=1) for entry in (key, key_worth, value, value_worth)
    )
    scores = product_of_scores(query * (query_worth * key_worth), key.transpose(-1, -2))
    scores = scores * (scaling / (query_times * key_times))
    prefix = prefix_of(module)
    if prefix is not None:
        constant = prefix.key.repeat_interleave(groups, 0).to(scores.dtype)
        front = prefix_scores(query * query_worth, constant.transpose(-1, -2)) * (scaling / query_times)
        scores = torch.cat([front, scores], -1)
        if attention_mask is not None:
            attention_mask = visible_in_front(attention_mask, front.shape[-1])
    e, _ = exponentials(scores, attention_mask, softcap, position_bias, sites_on(module))
    e, worth, times = state.operand("probabilities", e.to(scores.dtype), by_head)
    front = e.shape[-1] - value.shape[-2]
    output = product_of_output(e[..., front:], value) * (worth * value_worth) / (times * value_times)
    if prefix is not None:
        constant = prefix.value.repeat_interleave(groups, 0).to(scores.dtype)
        output = output + prefix_output(e[..., :front], constant) * worth / times
    e = e * worth / times
    share = normaliser(e, sites_on(module))
    return (output * share).transpose(1, 2).contiguous(), e * share


AttentionInterface.register(NAME, event_attention)
AttentionMaskInterface.register(NAME, eager_mask)  # without a mask function of its own, attention would see the future
