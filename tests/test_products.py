"""Integer products: each layer against the product that it stands for, whole models, and what must stay as it was."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fas import convert, prepare
from fas.config import SpikingConfig
from fas.errors import ConfigError, FasError
from fas.neurons.native import kernels
from fas.runtime.control import at_time, sites_of
from fas.runtime.products import integer_products

pytestmark = pytest.mark.skipif(not kernels.takes(torch.zeros(1)), reason="no compiled kernels here")
ROUNDED = {8: 4e-3, 16: 1.6e-5, 24: 2e-7}
TIMES: list[dict[str, Any]] = [
    {"coding": "sigma_delta"}, {"coding": "rate"}, {"coding": "rate", "rows": "step"}, {"schedule": "layerwise"},
]  # fmt: skip


def converted(family: str, coverage: Any = "linear", **time: Any) -> tuple[Any, dict[str, Any]]:
    ann = tiny.ann(family).eval()
    batch = tiny.inputs_for(ann, 4)
    config = SpikingConfig(coverage=coverage, levels=8, timesteps=8, **time)
    return convert(prepare(ann, config, [batch])).eval(), batch


@pytest.mark.parametrize("bits", sorted(ROUNDED))
@pytest.mark.parametrize("time", TIMES, ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_every_layer_multiplies_what_it_read(family: str, time: dict[str, Any], bits: int) -> None:
    model, batch = converted(family, **time)
    for index, site in enumerate(sites_of(model).values()):  # as calibrated: other thresholds, starts and constants
        entry = site.add_parameters(site.clock.config.neuron_key)
        entry.log_threshold.data += 0.1
        entry.constant.fill_(0.05 * (index % 3))
    met = []

    def check(module: nn.Module, product: Any) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:
            found, wanted = product(x), type(module).forward(module, x)
            weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
            allowed = ROUNDED[bits] * (weight.abs() * x.abs().amax(tuple(range(x.ndim - 1)))).amax(1) * x.shape[-1]
            assert ((found - wanted).abs() <= allowed + 1e-5 * wanted.abs().max()).all()
            met.append(module)
            return found

        return forward

    with integer_products(model, bits):
        for module in model.modules():
            if (product := module.__dict__.get("forward")) is not None:
                module.forward = check(module, product)  # type: ignore[method-assign]
        model(**batch)
    readers = sum(site.consumers for site in sites_of(model).values())
    assert len(met) == readers
    assert not any("forward" in module.__dict__ for module in model.modules())


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TIMES), st.sampled_from(["ffn", "linear"]))
@torch.no_grad()
def test_with_24_bits_a_model_is_the_same(time: dict[str, Any], coverage: str) -> None:
    model, batch = converted("llama", coverage, **time)
    wanted = model(**batch).logits
    with integer_products(model, 24):
        found = model(**batch).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    assert torch.equal(model(**batch).logits, wanted)


@torch.no_grad()
def test_counts_beyond_a_byte_are_multiplied_as_ever() -> None:
    """Rate codes count to T: at T = 200 a constant input fires 200 times."""
    model, batch = converted("llama", "ffn", coding="rate")
    for site in sites_of(model).values():
        site.log_scale -= 4  # all neurons fire in every timestep
    with at_time(model, timesteps=200):
        wanted = model(**batch).logits
        with integer_products(model, 24):
            assert torch.equal(model(**batch).logits, wanted)


def test_gradients_and_other_times_are_not_confused() -> None:
    model, batch = converted("llama")
    with integer_products(model, 24):
        assert torch.equal(model(**batch).logits, _logits(model, batch))  # a gradient is asked for: as ever
        with torch.no_grad():
            for time in ({"timesteps": 4}, {"coding": "rate", "timesteps": 8}, {"timesteps": 4}):
                with at_time(model, **time):
                    assert torch.allclose(model(**batch).logits, _logits(model, batch), atol=1e-4), time
            for name, parameter in model.named_parameters():
                if "log_scale" not in name and ".neurons." not in name:
                    parameter.mul_(1.5)
            assert torch.allclose(model(**batch).logits, _logits(model, batch), atol=1e-4)  # packed anew


def _logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Without integer products."""
    products = {module: module.__dict__.pop("forward") for module in model.modules() if "forward" in module.__dict__}
    try:
        return model(**batch).logits
    finally:
        for module, product in products.items():
            module.forward = product


def test_what_cannot_be_is_refused() -> None:
    model, _ = converted("llama")
    with (
        pytest.raises(ConfigError, match="bits=12 of a weight are not valid: choose 8, 16, 24"),
        integer_products(model, 12),
    ):
        pass
    with pytest.raises(FasError, match="has no spiking sites"), integer_products(tiny.ann("llama")):
        pass
