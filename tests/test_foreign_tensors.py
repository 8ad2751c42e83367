"""Compiled code reads addresses: tensors of another device, dtype, shape, layout or sign go to PyTorch, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import fas
from fas.errors import FasError
from fas.neurons import fused, rate_mean_rows, sigma_delta
from fas.neurons.native import build, decoding, kernels, opaque
from fas.neurons.native.decoding import Dense, Gather, Weights, active, attend
from fas.neurons.qcfs import qcfs
from fas.runtime.control import sites_of

pytestmark = pytest.mark.skipif(build.library() is None, reason="no C++ compiler: no pointer is handed on")

T, B, C = 3, 2, 5


class Other(Tensor):
    """Somebody's tensor, whose memory is their own matter."""


def negated(value: Tensor) -> Tensor:
    """The same values, whose sign is due: what lies in memory is −x."""
    return torch.complex(torch.zeros_like(value), -value).conj().imag


FOREIGN: dict[str, Callable[[Tensor], Tensor]] = {
    "device": lambda value: value.to("meta"),
    "dtype": lambda value: value.double(),
    "half": lambda value: value.half(),
    "short": lambda value: value[..., :-1],
    "long": lambda value: torch.cat([value, value[..., :1]], -1),
    "axes": lambda value: value.expand(1, *value.shape),
    "layout": lambda value: value.to_sparse(),
    "class": lambda value: value.as_subclass(Other),
    "sign": negated,
}

unit, half, zero = torch.linspace(0.2, 0.6, C), torch.full((C,), 0.5), torch.zeros(C)
rows = torch.randn(T, B, C, generator=torch.Generator().manual_seed(0))
PLAN = ([4.0, 2.0, 1.0], (-8, 8), [0.0, 0.0, 0.0])
weights, bias = torch.randn(C, 7, generator=torch.Generator().manual_seed(1)), torch.randn(7)


@pytest.mark.parametrize("kind", FOREIGN)
def test_constants_that_kernels_cannot_read_are_not_taken(kind: str) -> None:
    strange = FOREIGN[kind](unit)
    assert not kernels.takes(rows, strange)
    assert not kernels.takes(rows, unit, strange)
    assert fused.kernels_for(rows, strange) is None
    if kind not in ("short", "long", "axes"):  # rows may have any shape
        assert not kernels.takes(FOREIGN[kind](rows), unit)


# functions of one tensor each, which stands where another one could
CALLS: dict[str, tuple[Callable[[Any], Any], Tensor]] = {
    "track unit": (lambda x: kernels.track(rows, x, half, zero, *PLAN), unit),
    "track v_init": (lambda x: kernels.track(rows, unit, x, zero, *PLAN), half),
    "track a_init": (lambda x: kernels.track(rows, unit, half, x, *PLAN), zero),
    "track out": (lambda x: kernels.track(rows, unit, half, zero, *PLAN, out=x), rows.clone()),
    "track grad": (lambda x: kernels.track_back(x, rows, unit, half, zero, *PLAN), rows),
    "fire threshold": (lambda x: kernels.fire(rows, x, half, True, True), unit),
    "fire grad": (lambda x: kernels.fire_back(x, rows, unit, half, True, True), rows),
    "fire v_init": (lambda x: kernels.fire_back(rows, rows, unit, x, True, True), half),
    "quantize": (lambda x: kernels.quantize(rows, x, (-8, 8)), unit),
    "quantize out": (lambda x: kernels.quantize(rows, unit, (-8, 8), out=x), rows.clone()),
    "quantize grad": (lambda x: kernels.quantize_back(x, rows, unit, (-8, 8)), rows),
    "count": (lambda x: kernels.count(rows, x), unit),
    "prepared": (lambda x: kernels.prepared_firing(x, half, C, T, True, True)(rows), unit),
    "prepared rows": (lambda x: kernels.prepared_firing(unit, half, C, T, True, True)(x), rows),
    "gather": (lambda x: Gather(Weights(weights))(x), rows),
    "gather bias": (lambda x: Gather(Weights(weights, x))(rows), bias),
    "gather step": (lambda x: Gather(Weights(weights.to(torch.int8), bias, step=x))(rows), bias),
    "gather unit": (lambda x: Gather(Weights(weights, unit=x))(rows), unit),
    "gather base": (lambda x: Gather(Weights(weights, base=x))(rows), unit),
    "dense": (lambda x: Dense(weights.T, bias)(x), rows),
    "dense bias": (lambda x: Dense(weights.T, x)(rows), bias),
    "active": (lambda x: active(rows[0], x), unit),
}  # fmt: skip
# a gradient may be of the other dtype of kernels; "axes" of a tensor that has several is another batch
ALLOWED = {("gather", "axes"), ("dense", "axes")}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_that_is_called_all_the_same_refuses_in_one_sentence(name: str, kind: str) -> None:
    call, tensor = CALLS[name]
    if (name, kind) in ALLOWED:
        call(FOREIGN[kind](tensor))
        return
    with pytest.raises(FasError, match=r"^a compiled kernel got .*; give ") as caught:
        call(FOREIGN[kind](tensor))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_what_does_not_lie_side_by_side_gives_the_same(name: str) -> None:
    call, tensor = CALLS[name]
    strided = tensor.repeat_interleave(2, -1)[..., ::2]
    assert not strided.is_contiguous()
    if name.endswith("out"):
        with pytest.raises(FasError, match="not contiguous"):
            call(strided)
        return
    both = [result if isinstance(result, tuple) else (result,) for result in (call(strided), call(tensor))]
    for found, wanted in zip(*both, strict=True):
        assert found == wanted if isinstance(wanted, int) else torch.equal(found, wanted)


def test_steps_and_zones_that_do_not_fit_are_refused() -> None:
    for steps, zones in (([4.0, 2.0], [0.0] * 2), ([1.0] * 3, [0.0] * 2), ([1.0] * 3, [])):
        with pytest.raises(FasError, match=r"steps and .* dead zones for 3 timesteps"):
            kernels.track(rows, unit, half, zero, steps, (-8, 8), zones)


def _attention() -> dict[str, Any]:
    random = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    return {
        "query": drawn(4, 4, C), "keys": drawn(2, 2, 6, C), "values": drawn(2, 2, 6, C), "hidden": drawn(4, 1, 7),
        "fresh_key": drawn(4, 2, 1, C), "fresh_value": drawn(4, 2, 1, C), "prefix_key": drawn(2, 3, C),
        "prefix_value": drawn(2, 3, C),
    }  # fmt: skip


def _arranged(given: dict[str, Tensor]) -> tuple[Any, ...]:
    fresh, prefix = (tuple(given[f"{part}_{each}"] for each in ("key", "value")) for part in ("fresh", "prefix"))
    return given["query"], given["keys"], given["values"], given["hidden"], fresh, prefix


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", _attention())
def test_attention_reads_nothing_foreign(name: str, kind: str) -> None:
    given = _attention()
    *operands, fresh, prefix = _arranged(given)
    assert attend(*operands, 0.5, fresh, prefix).isfinite().all()
    *operands, fresh, prefix = _arranged(given | {name: FOREIGN[kind](given[name])})
    assert not decoding.attends(*operands, fresh, prefix)
    with pytest.raises(FasError, match=r"^the compiled attention got .*; give "):
        attend(*operands, 0.5, fresh, prefix)


def test_signs_that_are_due_count_in_neurons() -> None:
    for neuron in (
        lambda x, by: sigma_delta(x, by, half, zero, [4, 2, 1], 8, True)[0],
        lambda x, by: rate_mean_rows(x, by, half, True)[0],
        lambda x, by: qcfs(x, by, 8, True),
    ):
        assert torch.equal(neuron(negated(rows), unit), neuron(rows, unit))
        assert torch.equal(neuron(rows, negated(unit)), neuron(rows, unit))


def test_a_compiler_is_not_handed_foreign_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert opaque.takes(rows, unit)
    for kind in ("device", "dtype", "half", "short", "long", "axes"):
        assert not opaque.takes(rows, FOREIGN[kind](unit)), kind


def test_an_accelerated_layer_sees_what_its_weights_have_become() -> None:
    """Other memory behind the same parameter, weights of another device, inputs of another width."""
    model = tiny.snn("llama")
    layer = next(hook for hook in model.modules() if isinstance(hook, torch.nn.Linear))
    x = torch.randn(2, layer.in_features)
    with fas.accelerated(model), torch.no_grad():
        first = layer.forward(x)
        layer.weight.data = layer.weight.data * 2
        assert torch.allclose(layer.forward(x) - layer.bias, 2 * (first - layer.bias), atol=1e-5)
        layer.bias.data = layer.bias.data + 1
        assert torch.allclose(layer.forward(x) - layer.bias, 2 * (first - layer.bias + 1), atol=1e-5)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer.forward(x[:, :-1])
        layer.bias = torch.nn.Parameter(layer.bias.to("meta"))
        with pytest.raises(RuntimeError):
            layer.forward(x)
    assert sites_of(model)
