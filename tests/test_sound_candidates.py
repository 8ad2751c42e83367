"""A candidate whose loss is no number never wins, whatever stands beside it; where none is sound, one sentence says where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import fas
from fas.calibration import block, calibrate, calibrate_folder, settling
from fas.calibration.coarse import Choice, Search
from fas.calibration.settling import schedules, settle
from fas.conversion.scales import _least
from fas.errors import CheckpointError, DataError
from fas.progress import Silent
from fas.report.comparison import badness, front
from fas.report.results import Row
from fas.runtime.control import clock_of, sites_of
from fas.training import BlockOptions, train_blocks_folder

NAN = float("nan")


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_schedule_without_a_finite_loss_is_never_chosen(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.snn("gpt2", levels=8, timesteps=4)
    key = clock_of(model).config.neuron_key
    parameters = [site.add_parameters(key) for site in sites_of(model).values() if site.calibrates]
    listed = schedules(8, 4, 1)
    good = listed[2]

    def loss(*_: Any) -> torch.Tensor:
        steps = tuple(int(k) for k in parameters[0].steps)
        return torch.tensor(NAN if steps == listed[place] else 0.1 if steps == good else 1.0)

    monkeypatch.setattr(settling, "logits_loss", loss)
    settle(model, [{"input_ids": tiny.tokens()}], Silent(), parameters)
    assert {tuple(int(k) for k in entry.steps) for entry in parameters} == {good}


class Broken(Search):
    """Whose neurons give no number where the threshold is of these factors of λ."""

    factors: tuple[float, ...] = (0.8, 1.25)

    def _neurons(self, choice: Choice) -> tuple[torch.Tensor, torch.Tensor]:
        rows, spikes = super()._neurons(choice)
        factor = choice.threshold / self.scale
        bad = torch.stack([torch.isclose(factor, torch.tensor(f)) for f in self.factors]).any(0)
        return rows.masked_fill(bad, NAN), spikes


def search_on(cls: type[Search]) -> Search:
    site = next(iter(sites_of(tiny.snn("gpt2", levels=8, timesteps=4)).values()))
    target = torch.randint(-7, 8, (200, site.width)) * site.scale.detach() / 8
    return cls(site, target.expand(4, -1, -1), target, torch.ones(site.width))


def test_thresholds_without_a_finite_error_are_never_chosen() -> None:
    search = search_on(Broken)
    coarse = search.coarse()
    for choice in (coarse, search.per_channel(coarse)):
        assert bool(search.errors(choice).isfinite().all())
    worst = search.choice(search_setting(0.8))
    assert bool(search.errors(search.per_channel(worst)).isfinite().all())


def search_setting(factor: float) -> Any:
    from fas.calibration.coarse import Setting

    return Setting((4, 2, 1, 1), factor=factor)


def test_where_no_candidate_is_sound_the_site_is_named() -> None:
    search = search_on(Broken)
    search.factors = (0.8, 0.9, 1.0, 1.1, 1.25)  # type: ignore[misc]
    with pytest.raises(DataError, match=rf"none of \d+ candidates for the neurons of {search.site.name} has a finite"):
        search.coarse()


def test_where_a_layer_cannot_be_compared_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.snn("llama", levels=8, timesteps=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(block, "alignment", lambda *_: torch.tensor(NAN))
    with pytest.raises(DataError, match=r"the output of model\.0 is not finite"):
        calibrate(model, [{"input_ids": tiny.tokens()}])
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_scale_without_a_finite_error_is_never_chosen(place: int) -> None:
    x = torch.linspace(-1, 1, 64)[:, None].repeat(1, 3)
    scales = [torch.full((3,), value) for value in (0.1, 1.0, 0.4)]
    wanted = _least(x, x, scales, 15, True)
    scales.insert(place, torch.tensor([NAN, 1.0, NAN]))
    assert torch.equal(_least(x, x, scales, 15, True), wanted)


def test_a_row_without_a_number_is_no_best_row() -> None:
    rows = [Row("snn", value=value, spikes_per_neuron=cost) for value, cost in ((NAN, 1.0), (5.0, 2.0), (4.0, 3.0))]
    assert [row.value for row in front(rows, lambda row: row.spikes_per_neuron)][-2:] == [5.0, 4.0]
    assert badness(rows[0]) > badness(rows[1])


def with_nan(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[5] = NAN
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


NAME = "transformer.h.1.mlp.c_fc.weight"


def test_training_from_disk_names_a_weight_that_is_no_number(tmp_path: Path) -> None:
    tiny.ann("gpt2").save_pretrained(tmp_path / "ann")
    with_nan(tmp_path / "ann", NAME)
    config = fas.SpikingConfig(levels=8, timesteps=4, prefix=())
    with pytest.raises(CheckpointError, match=rf"the weight {NAME} is not finite \(nan at \[0, 5\]"):
        train_blocks_folder(
            tmp_path / "ann", tmp_path / "out", config, [{"input_ids": tiny.tokens()}], BlockOptions(steps=1)
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["ann"]


def test_calibration_from_disk_names_a_weight_that_is_no_number(tmp_path: Path) -> None:
    model = tiny.snn("gpt2")
    model.transformer.h[1].mlp.c_fc.weight.data.view(-1)[5] = NAN
    model.save_pretrained(tmp_path / "snn")
    with pytest.raises(CheckpointError, match=rf"the weight {NAME} is not finite \(nan at \[0, 5\]"):
        calibrate_folder(tmp_path / "snn", tmp_path / "out", [{"input_ids": tiny.tokens()}], timesteps=2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["snn"]
