"""Accelerated models: each layer against the product that it stands for, whole models, and what must stay as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import folders
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuron_cases import same_but_at_edges
from torch import nn
from transformers.pytorch_utils import Conv1D

import fas
from fas import convert, prepare
from fas.cli import main
from fas.config import SpikingConfig
from fas.errors import ConfigError, FasError
from fas.neurons.native import kernels
from fas.runtime.accelerated import accelerated
from fas.runtime.control import at_time, clock_of, sites_of
from fas.runtime.integer_products import FLOATS, INTEGERS

pytestmark = pytest.mark.skipif(not kernels.takes(torch.zeros(1)), reason="no compiled kernels here")
BY_NAME = {path.name: path for path in (*INTEGERS, *FLOATS)}
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

    with accelerated(model, bits):
        for module in model.modules():
            if (product := module.__dict__.get("forward")) is not None:
                module.forward = check(module, product)  # type: ignore[method-assign]
        model(**batch)
    readers = sum(site.consumers for site in sites_of(model).values())
    assert len(met) == readers + 1  # the head
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("time", TIMES, ids=str)
@torch.no_grad()
def test_bfloat16_multiplies_integers_too(time: dict[str, Any]) -> None:
    """Each layer against its product in fp64, behind rows that were rounded; T = 31 of rate are the most that it can."""
    model, batch = converted("llama", **time)
    model, batch = model.to(torch.bfloat16), {name: value.repeat(2, 1) for name, value in batch.items()}  # many rows
    met: list[float] = []
    if time.get("coding") == "rate":
        model.set_timesteps(31)

    def check(product: Any) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:
            found, module = product(x), product.module
            if product.packed:
                wanted = x.double() @ module.weight.double().T + module.bias.double()
                met.append(float((found.double() - wanted).abs().max() / wanted.abs().max()))
                assert found.dtype == torch.bfloat16
            return found

        return forward

    with accelerated(model, 16):
        for module in model.modules():
            if (product := module.__dict__.get("forward")) is not None:
                module.forward = check(product)  # type: ignore[method-assign]
        model(**batch)
    assert len(met) == sum(site.consumers for site in sites_of(model).values())
    assert max(met) < 0.01
    if time.get("coding") == "rate":
        with at_time(model, timesteps=32), accelerated(model, 16):
            model(**batch)
            assert not any(m.forward.packed for m in model.modules() if "forward" in m.__dict__)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TIMES), st.sampled_from(["ffn", "linear"]))
@torch.no_grad()
def test_with_24_bits_a_model_is_the_same(time: dict[str, Any], coverage: str) -> None:
    model, batch = converted("llama", coverage, **time)
    wanted = model(**batch).logits
    with accelerated(model, 24):
        found = model(**batch).logits
    assert same_but_at_edges(found, wanted)
    assert torch.equal(model(**batch).logits, wanted)


@torch.no_grad()
def test_what_no_neuron_has_touched_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With coverage ``ffn`` the attention of the first layer, and the way up into its FFN, are the same at all T."""
    for family, once in (("gpt2", 3), ("llama", 6)):
        model, batch = converted(family, "ffn")
        wanted, rows, plain = model(**batch).logits, [], {kind: kind.forward for kind in (Conv1D, nn.Linear)}

        blocks = set(model.base_model.modules())  # without the head

        def counted(
            module: Any, x: torch.Tensor, rows: list[int] = rows, plain: Any = plain, blocks: Any = blocks
        ) -> Any:
            if module in blocks:
                rows.append(x.shape[:-1].numel())
            return plain[type(module)](module, x)

        with monkeypatch.context() as patch:
            for kind in plain:
                patch.setattr(kind, "forward", counted)
            with accelerated(model):
                found = model(**batch).logits
        tokens = batch["input_ids"].numel()
        assert sorted(rows)[: once + 1] == [tokens] * once + [8 * tokens]
        assert torch.allclose(found, wanted, atol=1e-4)


@torch.no_grad()
def test_counts_beyond_a_byte_are_multiplied_as_ever() -> None:
    """Rate codes count to T: at T = 200 a constant input fires 200 times."""
    model, batch = converted("llama", "ffn", coding="rate")
    for site in sites_of(model).values():
        site.log_scale -= 4  # all neurons fire in every timestep
    with at_time(model, timesteps=200):
        wanted = model(**batch).logits
        with accelerated(model, 24):
            assert torch.allclose(model(**batch).logits, wanted, atol=1e-5)  # the head sums in another order


def test_gradients_and_other_times_are_not_confused() -> None:
    model, batch = converted("llama")
    with accelerated(model, 24):
        assert torch.equal(model(**batch).logits, _logits(model, batch))  # a gradient is asked for: as ever
        with torch.no_grad():
            for time in ({"timesteps": 4}, {"coding": "rate", "timesteps": 8}, {"timesteps": 4}):
                with at_time(model, **time):
                    assert same_but_at_edges(model(**batch).logits, _logits(model, batch)), time
            model(**batch)
            for name, parameter in model.named_parameters():
                if "log_scale" not in name and ".neurons." not in name:
                    parameter.mul_(1.5)
            assert same_but_at_edges(model(**batch).logits, _logits(model, batch))  # packed anew


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
        pytest.raises(ConfigError, match="bits=12 of a weight are not valid: choose 8, 16, 24, or 0"),
        accelerated(model, 12),
    ):
        pass
    with pytest.raises(FasError, match="has no spiking sites"), accelerated(tiny.ann("llama")):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("accelerated")
    model, text = folders.save_ann(root / "ann"), folders.save_text(root / "text.txt")
    with torch.enable_grad():
        assert main([
            "convert", "--model", model, "--data", text, "--out", str(root / "snn"), "--stage1", "none", "--no-stage2",
            "--levels", "8", "--timesteps", "4", "--length", "8", "--eval-sequences", "4", "--quiet",
        ]) == 0  # fmt: skip
    return str(root / "snn")


def test_eval_with_integers(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*more: str) -> dict[str, Any]:
        assert main(["eval", folder, "--quiet", "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    plain, whole = told(), told("--integer-bits", "24")
    assert "integer_bits" not in plain["extra"]
    assert whole["extra"]["integer_bits"] == 24
    assert whole["extra"]["integer_products"] in BY_NAME
    for before, after, coarse in zip(plain["rows"], whole["rows"], told("--integer-bits", "8")["rows"], strict=True):
        assert after["perplexity"] == pytest.approx(before["perplexity"], rel=1e-2)
        assert (coarse["perplexity"] == before["perplexity"]) == (before["name"] != "snn")
    for wrong, said in (
        ("12", "bits=12 of a weight are not valid"),
        ("16", "is for float32 and bfloat16 on a CPU, and this model is float16 on cpu"),
    ):
        assert (
            main(["eval", folder, "--quiet", "--integer-bits", wrong, *(["--dtype=float16"] if wrong == "16" else [])])
            == 2
        )
        assert said in capsys.readouterr().err


def test_generate_is_accelerated(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[int] = []

    @contextmanager
    def watched(model: Any, bits: int = 0) -> Iterator[Any]:
        met.append(bits)
        with accelerated(model, bits):
            yield model

    def told(*more: str) -> dict[str, Any]:
        assert main(["generate", folder, "--prompt=w3 w4", "--max-new-tokens=6", "--quiet", "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    monkeypatch.setattr("fas.pipeline.generate.accelerated", watched)
    fast, whole = told(), told("--integer-bits=24")
    assert met == [0, 24]
    monkeypatch.setattr("fas.pipeline.generate.accelerated", lambda model, bits: nullcontext(model))
    slow = told()
    assert fast["text"] == whole["text"] == slow["text"]
    assert fast["spikes_per_neuron"] == pytest.approx(slow["spikes_per_neuron"], rel=1e-3)


def test_neurons_that_are_written_to_count_and_calibration_is_refused() -> None:
    model = tiny.snn("llama")
    fas.calibrate(model, [tiny.inputs_for(model, 2, 9)])
    other, ids = copy.deepcopy(model), tiny.tokens(1, 1)
    for site in sites_of(other).values():
        with torch.no_grad():
            site.parameters_for(clock_of(other).config).log_threshold.add_(0.2)
            site.parameters_for(clock_of(other).config).constant.fill_(0.3)
    with torch.no_grad():
        wanted = other(input_ids=ids).logits
        with fas.accelerated(model):
            before = model(input_ids=ids).logits
            model.load_state_dict(other.state_dict())
            found = model(input_ids=ids).logits
            with pytest.raises(
                FasError, match=r"fas\.calibrate changes neurons, which fas\.accelerated takes as they are"
            ):
                fas.calibrate(model, [tiny.inputs_for(model, 2, 9)])
    assert not torch.allclose(before, wanted, atol=1e-2)
    assert torch.allclose(found, wanted, atol=1e-4)
