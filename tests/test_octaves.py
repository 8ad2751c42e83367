"""The input of a norm is shifted by its token's octave: words beside image tokens many times as large are still heard."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ann, inputs_for

import fas
from fas.config import SpikingConfig
from fas.runtime.operators import octave


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False, width=32), min_size=1, max_size=9))
def test_octave_is_the_power_of_two_below_the_mean_size(values: list[float]) -> None:
    x = torch.tensor([values], dtype=torch.float64)
    found, mean = float(octave(x)), float(x.abs().mean())
    if mean > 1e-300:
        assert found <= mean < 2 * found
        assert torch.frexp(octave(x))[0].item() == 0.5
    else:
        assert found == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_tokens_of_any_size_are_normed(family: str) -> None:
    """Embeddings of half of the vocabulary are 200 times as large; T = 16 and no time agree with the ANN for both halves."""
    model, inputs = ann(family).eval(), inputs_for(ann(family))
    table = model.get_input_embeddings().weight
    large = torch.arange(len(table)) % 2 == 0
    table[large] *= 200
    inputs["input_ids"] = torch.arange(12).repeat(3, 1)
    inputs = {"input_ids": inputs["input_ids"]}
    wanted = model(**inputs).logits
    only = ("re:.*norm_input", "re:.*rsqrt")
    network = fas.prepare(
        copy.deepcopy(model), SpikingConfig(coverage="full", levels=15, timesteps=16, targets=only), [inputs]
    )
    for found in (network(**inputs).logits, fas.convert(network)(**inputs).logits):
        error = (found - wanted).square().mean(-1) / wanted.square().mean(-1)
        assert error.max() < 0.05
