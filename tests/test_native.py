"""Compiled neurons against the PyTorch code: equal bit by bit on the way forward, to rounding on the way back."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from functorch.compile import make_boxed_func
from hypothesis import given, settings
from hypothesis import strategies as st
from neuron_cases import cases, near, same, tracking
from torch._dynamo.backends.common import aot_autograd

import fas
from fas.config import SpikingConfig
from fas.neurons import Clock, Site, integrate_fire, qcfs
from fas.neurons.native import build, kernels
from fas.runtime.control import sites_of
from fas.storage import cache_folder

sigma_delta_module = importlib.import_module("fas.neurons.sigma_delta")  # the package holds a function of that name

pytestmark = pytest.mark.skipif(build.library() is None, reason="no C++ compiler: there is nothing to compare")
MANY = settings(max_examples=80, deadline=None)


@MANY
@given(cases())
def test_tracking_is_the_same(case: dict[str, Any]) -> None:
    rows, spikes = sigma_delta_module._track(*tracking(case))
    found = kernels.track(*tracking(case))
    assert same(found[0], rows)
    assert torch.equal(found[1], spikes)
    silent = kernels.track(*tracking(case), want=False)
    assert same(silent[0], rows)
    assert silent[1].numel() == 0


@MANY
@given(cases(), st.booleans(), st.integers(0, 2**31))
def test_tracking_of_strange_values_is_the_same(case: dict[str, Any], inside: bool, seed: int) -> None:
    """Not a number, infinite, tiny; states at, between and beyond the limits; a train that waits and one that does not."""
    generator = torch.Generator().manual_seed(seed)
    strange = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-42, -0.0, 3e38, 0.5])
    rows, (low, high) = case["rows"].clone(), case["bounds"]
    chosen = torch.rand(rows.shape, generator=generator) < 0.1
    rows[chosen] = strange[torch.randint(len(strange), rows.shape, generator=generator)].to(rows.dtype)[chosen]
    state = case["a_init"] * (high + 1) * torch.rand(case["a_init"].shape, generator=generator)
    case |= {"rows": rows, "a_init": state.clamp(low, high) if inside else state}
    wanted, found = sigma_delta_module._track(*tracking(case)), kernels.track(*tracking(case))
    for pair in zip(found, wanted, strict=True):
        torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True)


@MANY
@given(cases())
def test_firing_is_the_same(case: dict[str, Any]) -> None:
    arguments = [case[name] for name in ("rows", "unit", "v_init", "signed", "mean")]
    rows, spikes = integrate_fire._rows(*arguments)
    found = kernels.fire(*arguments)
    assert same(found[0], rows)
    assert torch.equal(found[1], spikes)
    assert same(kernels.fire(*arguments, want=False)[0], rows)


@MANY
@given(cases())
def test_quantizing_is_the_same(case: dict[str, Any]) -> None:
    x, (low, high) = case["rows"], case["bounds"]
    wide = x.float()
    wanted = ((wide / case["unit"] + 0.5).floor().clamp(low, high) * case["unit"]).to(x.dtype)
    assert same(kernels.quantize(x, case["unit"], case["bounds"]), wanted)


@MANY
@given(cases())
def test_gradients_are_the_same(case: dict[str, Any]) -> None:
    rows = case["rows"]
    grad = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)).to(rows.dtype)
    pairs = [(kernels.track_back(grad, *tracking(case)), sigma_delta_module._gradients(grad, *tracking(case)))]
    arguments = [case[name] for name in ("rows", "unit", "v_init", "signed", "mean")]
    pairs.append((kernels.fire_back(grad, *arguments), integrate_fire._gradients(grad, *arguments)))
    for found, wanted in pairs:
        assert all(near(*pair) for pair in zip(found, wanted, strict=True))


@MANY
@given(cases())
def test_gradients_of_qcfs_are_the_same(case: dict[str, Any]) -> None:
    grads = []
    for native in (True, False):
        x, scale = case["rows"].clone().requires_grad_(), case["unit"].clone().requires_grad_()
        weights = torch.linspace(-1, 1, x.numel()).view_as(x).to(x.dtype)
        if not native:  # what the kernels do not take: float64
            x, scale = (value.detach().double().requires_grad_() for value in (x, scale))
        (qcfs(x, scale, 8, case["signed"]) * weights).sum().backward()
        grads.append((x.grad, scale.grad))
    for found, wanted, like in zip(*grads, (case["rows"], case["unit"]), strict=True):
        assert found is not None
        assert wanted is not None
        assert found.dtype == like.dtype
        assert near(found, wanted.to(like.dtype))


def test_counts_are_whole_multiples_and_128() -> None:
    unit = torch.rand(70) + 0.01
    codes = torch.randint(-127, 128, (5, 3, 70))
    assert torch.equal(kernels.count(codes * unit, unit), (codes + 128).to(torch.uint8))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_streams_change_nothing(
    threads: int, dtype: torch.dtype, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than `STREAMED` bytes, shared out by OpenMP or by Python; the width is no multiple of a vector."""
    if not shared:
        monkeypatch.setattr(kernels, "shares", lambda: False)
    rows = torch.randn(4, 1100, 1003, generator=torch.Generator().manual_seed(0)).to(dtype)
    case = [
        rows,
        torch.full((1003,), 0.2),
        torch.full((1003,), 0.5),
        torch.zeros(1003),
        [2.0, 1, 1, 1],
        (-8, 8),
        [0.0] * 4,
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, spikes = kernels.track(*case)
        back = kernels.track_back(torch.ones_like(rows), *case)
    finally:
        torch.set_num_threads(before)
    assert rows.nbytes > kernels.STREAMED / (1 if dtype == torch.float32 else 2)
    wanted = sigma_delta_module._track(*case)
    assert same(found, wanted[0])
    assert torch.equal(spikes, wanted[1])
    assert all(
        near(*pair) for pair in zip(back, sigma_delta_module._gradients(torch.ones_like(rows), *case), strict=True)
    )


def test_what_is_no_number_stays_none() -> None:
    rows = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]]).expand(2, 1, 4).contiguous()
    constants = torch.full((4,), 0.2), torch.full((4,), 0.5), torch.zeros(4)
    out, _ = kernels.track(rows, *constants, [1.0, 1.0], (-8, 8), [0.0, 0.0])
    wanted, _ = sigma_delta_module._track(rows, *constants, [1.0, 1.0], (-8, 8), [0.0, 0.0])
    assert torch.equal(out.isnan(), wanted.isnan())
    assert out.isnan().tolist() == [[[True, False, False, False]]] * 2
    assert torch.equal(out[~out.isnan()], wanted[~out.isnan()])
    assert kernels.quantize(rows, constants[0], (-8, 8))[0].isnan().tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("coding", ["sigma_delta", "rate"])
@pytest.mark.parametrize("schedule", ["synchronous", "layerwise"])
def test_a_site_in_bf16_is_one_that_widens(coding: Any, schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(SpikingConfig(coding=coding, schedule=schedule, timesteps=8, levels=8), "snn", depth=1)
    site = Site("s", 70, True, 1, clock)
    rows = torch.randn(16, 3, 70, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = site(rows)
    monkeypatch.setattr(kernels, "takes", lambda *values: False)
    assert same(found, site(rows))


def test_nobody_who_traces_meets_a_kernel() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    rows = torch.zeros(2, 3)
    assert kernels.takes(rows)
    assert not kernels.takes(rows.double())
    assert not kernels.takes(rows, rows.double())
    assert not kernels.takes(rows[:0])
    with TorchDispatchMode():
        assert not kernels.takes(rows)
    with FakeTensorMode():
        assert not kernels.takes(torch.zeros(2, 3))


SAYS = """
import warnings, torch
from fas.neurons import qcfs
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    print([round(v, 4) for v in qcfs(torch.tensor([[.2, .7]]), torch.ones(2), 4, True)[0].tolist()])
    qcfs(torch.ones(1, 2), torch.ones(2), 4, True)
print(len(found), *[str(entry.message) for entry in found])
"""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"FAS_NATIVE": "0"}, "0"),
        (
            {"PATH": "/nonexistent", "CXX": "none"},
            "1 no C++ compiler was found (c++, g++ or clang++): neurons run in PyTorch",
        ),
        ({"CXX": "/bin/false"}, "1 native kernels could not be compiled or loaded"),
        ({}, "0"),
    ],
)
def test_without_a_compiler_the_results_are_the_same(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)} | variables
    done = subprocess.run([sys.executable, "-c", SAYS], env=environment, capture_output=True, text=True, check=True)
    values, message = done.stdout.splitlines()
    assert values == "[0.25, 0.75]"
    assert message.startswith(said)
    kept = list(tmp_path.glob("fas/neurons-*.so"))
    assert len(kept) == (1 if variables == {} else 0)


def test_a_home_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache_folder().parent == tmp_path


@pytest.mark.parametrize("time", [{"coding": "sigma_delta"}, {"coding": "rate"}, {"coding": "rate", "rows": "step"}])
def test_a_compiler_meets_operators(time: dict[str, Any]) -> None:
    """A whole model in one graph, forward and backward, in which neurons are single nodes and not T times ten."""
    ann = tiny.ann("llama").eval()
    batch = tiny.inputs_for(ann, 2)
    model = fas.convert(fas.prepare(ann, SpikingConfig(levels=8, timesteps=4, **time), [batch])).train()
    met: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        met.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    def gradients(run: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        logits = run(**batch, use_cache=False).logits
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        return logits.detach(), [value.grad.clone() for value in model.parameters() if value.grad is not None]

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=aot_autograd(fw_compiler=backend), fullgraph=True)
    found, wanted = gradients(compiled), gradients(model)
    torch._dynamo.reset()
    assert torch.allclose(found[0], wanted[0], atol=1e-5)
    assert all(near(*pair) for pair in zip(found[1], wanted[1], strict=True))
    kind = "track" if time["coding"] == "sigma_delta" else "fire"
    sites = len(sites_of(model))
    assert sum(f"fas.{kind}." in name for name in met) == sites
    assert sum(f"fas.{kind}_back" in name for name in met) == sites
