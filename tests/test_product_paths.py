"""Integer products: every path to the same sums, the probe that tells which of them are exact here, and the choice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path as File
from typing import Any

import pytest
import tiny
import torch
from neuron_cases import same_but_at_edges
from torch import Tensor

from fas import convert, prepare
from fas.config import SpikingConfig
from fas.neurons.native import kernels
from fas.runtime import product_probe, products
from fas.runtime.accelerated import accelerated, integer_paths
from fas.runtime.integer_products import FLOATS, INTEGERS, Path, digits_of
from fas.runtime.product_probe import is_exact, path_for, settings

ALL = (*INTEGERS, *FLOATS)
BY_NAME = {path.name: path for path in ALL}


def in_16_bits(whole: Tensor, steps: Tensor, size: int, offset: int) -> Any:
    """A processor that adds two products in 16 bits, which saturate, before it adds their sums in 32."""
    odd = torch.nn.functional.pad(whole, (0, whole.shape[1] % 2))

    def multiply(operands: Tensor) -> Tensor:
        terms = torch.nn.functional.pad(operands, (0, operands.shape[1] % 2)).double().unsqueeze(1) * odd
        pairs = terms.unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1)
        return ((pairs.sum(-1) - offset * whole.sum(1)) * steps).float()

    return multiply


def in_bfloat16(whole: Tensor, steps: Tensor, size: int, offset: int) -> Any:
    """An fp32 product that rounds its operands to bfloat16."""
    return FLOATS[0].pack(whole.bfloat16().double(), steps, size, offset)


def by_digits_in_bfloat16(whole: Tensor, steps: Tensor, size: int, offset: int) -> Any:
    places = [in_bfloat16(digit, steps * 256**place, 1, offset) for place, digit in enumerate(digits_of(whole, size))]
    return lambda operands: sum(product(operands) for product in places)


def missing(whole: Tensor, steps: Tensor, size: int, offset: int) -> Any:
    return torch.ops.onednn.no_operator_of_this_name(whole)


def failing(whole: Tensor, steps: Tensor, size: int, offset: int) -> Any:
    raise RuntimeError("could not create a primitive descriptor")


@pytest.mark.parametrize(
    ("pack", "offset", "size", "exact"),
    [
        (in_16_bits, 128, 1, False), (in_16_bits, 64, 1, True), (missing, 128, 1, False), (failing, 128, 1, False),
        (in_bfloat16, 128, 2, False), (in_bfloat16, 128, 3, False), (by_digits_in_bfloat16, 128, 3, True),
    ],
)  # fmt: skip
def test_the_probe_refuses_what_is_not_exact(pack: Any, offset: int, size: int, exact: bool) -> None:
    assert is_exact(Path("tried", pack, offset), size, settings()) is exact


def test_integers_that_are_off_by_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def nearly(whole: Tensor, steps: Tensor, size: int, offset: int) -> Any:
        return lambda operands: FLOATS[0].pack(whole, steps, size, offset)(operands) + (len(operands) == 47)

    path = Path("tried", nearly, 128)
    assert is_exact(path, 3, settings())  # in fp32 that is rounding
    monkeypatch.setattr(product_probe, "INTEGERS", (path,))
    assert not is_exact(path, 1, settings())


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", BY_NAME)
def test_every_path_has_the_same_sums(name: str, size: int) -> None:
    path = BY_NAME[name]
    if not is_exact(path, size, settings()):
        pytest.skip("not exact on this processor")
    random, largest = torch.Generator().manual_seed(size), 127 * 256 ** (size - 1)
    whole = torch.randint(-largest, largest + 1, (29, 333), generator=random)
    codes = torch.randint(1 - path.offset, path.offset, (70, 333), generator=random)
    steps = torch.rand(29, generator=random, dtype=torch.float64)
    found = path.pack(whole.double(), steps, size, path.offset)((codes + path.offset).to(torch.uint8))
    terms = (codes.abs() @ whole.abs().T) * steps
    assert ((found - (codes @ whole.T) * steps).abs() <= 1e-6 * terms).all()
    digits = digits_of(whole.double(), size)
    assert torch.equal(sum(digit.long() * 256**place for place, digit in enumerate(digits)), whole)


@pytest.mark.parametrize(
    ("most", "inputs", "size", "refused", "chosen"),
    [
        (127, 100, 3, "", "8-bit"), (63, 100, 1, "", "8-bit"), (127, 65_793, 1, "", "8-bit"),
        (127, 65_794, 1, "", "float32"), (63, 65_794, 1, "", "7-bit"), (63, 132_105, 1, "", "float32"),
        (63, 100, 1, "8-bit", "7-bit"), (64, 100, 1, "8-bit", "float32"), (63, 100, 2, "8-bit", "float32"),
        (63, 100, 1, "8-bit 7-bit", "float32"), (127, 100, 2, "8-bit float32", "float32-digits"),
        (127, 100, 2, "8-bit float32 float32-digits", None),
    ],
)  # fmt: skip
def test_the_fastest_exact_path_is_taken(
    most: int, inputs: int, size: int, refused: str, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product_probe, "PATHS", ALL)
    monkeypatch.setattr(product_probe, "is_exact", lambda path, size, settings: path.name not in refused.split())
    found = path_for(most, inputs, size)
    assert (found and found.name) == chosen


def test_settings_that_round_operands_are_asked_again() -> None:
    assert is_exact(FLOATS[0], 2, settings())
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_exact(FLOATS[0], 2, settings())
    before, plain = torch.get_float32_matmul_precision(), settings()
    torch.set_float32_matmul_precision("high" if before != "high" else "highest")
    try:
        assert settings() != plain
    finally:
        torch.set_float32_matmul_precision(before)


native = pytest.mark.skipif(not kernels.takes(torch.zeros(1)), reason="no compiled kernels here")


@native
@torch.no_grad()
def test_a_model_is_the_same_by_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path may change under a model: weights are packed anew. Where none is exact, they stay as they are."""
    ann = tiny.ann("llama").eval()
    batch = tiny.inputs_for(ann, 8)
    model = convert(prepare(ann, SpikingConfig(coverage="linear", levels=8, timesteps=8), [batch])).eval()
    wanted, met = model(**batch).logits, []
    with accelerated(model, 24):
        assert integer_paths(model) == "none"
        for path in (*ALL, None):
            if path is not None and not is_exact(path, 3, settings()):
                continue
            asked: list[tuple[int, int, int]] = []
            monkeypatch.setattr(products, "path_for", lambda *args, path=path, asked=asked: asked.append(args) or path)
            assert same_but_at_edges(model(**batch).logits, wanted), path
            assert {(most, size) for most, _, size in asked} == {(8, 3)}
            assert path is None or integer_paths(model) == path.name
            met.append(path)
    assert met[-3:] == [*FLOATS, None]


WORST = """
import torch
from torch import nn
from fas.config import SpikingConfig
from fas.neurons import Clock, Site
from fas.runtime.products import Product

torch.set_num_threads(1)
for levels in (63, 127):
    for bits in (8, 16, 24):
        config = SpikingConfig(schedule="layerwise", timesteps=levels, levels=levels)
        site = Site("s", 1025, True, 1, clock := Clock(config, "snn", depth=1))
        layer = nn.Linear(1025, 33, bias=False)
        layer.weight.data = torch.ones(33, 1025)
        layer.weight.data[::2] = -1
        x = (site.scale.detach() * torch.ones(40, 1025)).contiguous()
        x[::3] *= -1
        product = Product(layer, site, bits, clock)
        with torch.no_grad():
            found, wanted = product(x), x.double() @ layer.weight.double().T
        (packed,) = product.packed.values()
        print(levels, bits, packed.path.name, float(((found - wanted) / wanted).abs().max()))
"""


@native
@pytest.mark.parametrize("most", ["AVX2", "SSE41"])
def test_layers_are_exact_without_newer_instructions(most: str) -> None:
    """All operands and weights at the ends of their ranges, on a processor that is told to be an older one."""
    source = str(File(products.__file__).parents[2])
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": most, "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", WORST], env=environment, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(levels, bits) for levels, bits, _, _ in lines] == [
        (levels, bits) for levels in ("63", "127") for bits in ("8", "16", "24")
    ]
    assert all(float(error) < 1e-5 for *_, error in lines), done.stdout
    assert all(path in BY_NAME for _, _, path, _ in lines)
