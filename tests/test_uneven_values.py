"""Rotation across attention heads, inputs as distances from their means, and scales that one outlier does not decide."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from contract import check_events, check_reload, out
from hypothesis import given
from hypothesis import strategies as st

import fas
from fas.conversion.scales import Samples, mmse_scale, row_weights
from fas.neurons.native import kernels
from fas.neurons.rotation import NO_ROTATION, Rotation, block_of, rotate
from fas.runtime.control import sites_of

SETTINGS: list[dict[str, Any]] = [{"rotation": "heads"}, {"center": True}, {"rotation": "heads", "center": True}]
IDS = torch.randint(3, tiny.VOCAB, (3, 8), generator=torch.Generator().manual_seed(2))


@given(st.integers(1, 6), st.integers(0, 5), st.booleans())
def test_rotations_are_orthogonal_and_undo_themselves(odd: int, power: int, across: bool) -> None:
    width = (2 * odd - 1) * 2**power
    rotation = Rotation(block_of(width), across)
    matrix = rotate(torch.eye(width, dtype=torch.float64), rotation)
    assert torch.allclose(matrix @ matrix.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(matrix @ matrix, torch.eye(width, dtype=torch.float64), atol=1e-12)


def test_across_mixes_all_heads() -> None:
    """576 channels, nine heads of 64: a channel of one head reaches every head; with neighbours alone, only its own."""
    one = torch.zeros(576)
    one[70] = 1.0
    for across, heads in ((True, 9), (False, 1)):
        reached = rotate(one, Rotation(64, across)).view(9, 64).any(-1)
        assert int(reached.sum()) == heads
    assert rotate(one, NO_ROTATION) is one


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_with_fine_grids_the_model_is_the_ann(family: str, settings: dict[str, Any]) -> None:
    config = fas.SpikingConfig(levels=1024, timesteps=4, steps=(512, 64, 8, 1), activation="keep", **settings)
    wanted = out(tiny.ann(family), input_ids=IDS)
    found = out(fas.prepare(tiny.ann(family), config, [{"input_ids": IDS}]), input_ids=IDS)
    assert float((found - wanted).abs().max()) < 0.02 * float(wanted.abs().max())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_spiking_models(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    config = fas.SpikingConfig(levels=8, timesteps=4, **settings)
    snn = fas.convert(fas.prepare(tiny.ann(family), config, [{"input_ids": IDS}])).eval()
    loaded = check_reload(snn, {"input_ids": IDS}, tmp_path)
    if "center" in settings:
        assert all(bool(site.center.any()) for site in sites_of(loaded).values() if site.center is not None)
        assert any(site.center is not None for site in sites_of(loaded).values())
    if kernels.takes(torch.zeros(1)):
        with torch.no_grad(), fas.accelerated(snn):
            written = snn.generate(IDS, max_new_tokens=4, do_sample=False)
        assert torch.equal(written, snn.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=False))
    check_events(snn.double(), {"input_ids": IDS})


def test_distances_from_the_mean_are_rounded_more_finely() -> None:
    """Inputs far from zero: as distances from their means they need a narrower range, so the grid is finer."""
    ann = tiny.ann("gpt2")
    with torch.no_grad():
        for block in ann.transformer.h:
            block.ln_1.bias += 5
            block.ln_2.bias += 5
    errors = []
    for center in (False, True):
        config = fas.SpikingConfig(levels=8, timesteps=8, activation="keep", center=center, targets=("re:.*_input",))
        model = fas.prepare(copy.deepcopy(ann), config, [{"input_ids": IDS}])
        errors.append(float((out(model, input_ids=IDS) - out(ann, input_ids=IDS)).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_massive_tokens_do_not_decide_scales() -> None:
    """One row of 4,096 is a thousand times as large as the others: scales and means stay near those without it."""
    x = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    samples = Samples([x], [x])
    plain, mean = mmse_scale(samples, 15, signed=True), samples.mean()
    massive = x.clone()
    massive[100] = torch.tensor([3000.0, 1500.0, -2000.0])
    samples = Samples([massive], [massive])
    assert float((mmse_scale(samples, 15, signed=True) / plain).log().abs().max()) < 0.3
    assert float((samples.mean() - mean).abs().max()) < 0.05
    assert torch.equal(row_weights(x), torch.ones(4096))  # what is not massive counts alike
