"""Stage 1 and Stage 2 on tiny models: what they change, what they leave alone, and that they help."""

import copy
from typing import Any

import pytest
import tiny
import torch
from transformers.pytorch_utils import Conv1D

import fas
from fas.calibration import CalibrationOptions, calibrate
from fas.conversion.install import rotate_reader
from fas.errors import DataError, FasError
from fas.losses import logits_kl
from fas.neurons.rotation import Rotation, rotate
from fas.runtime.control import as_qcfs, sites_of
from fas.tasks.language_modeling import Blocks
from fas.training import Stage1Options, fine_tune
from fas.training.stage1 import Stage1Trainer

BATCHES = [{"input_ids": tiny.tokens(2, 9, seed)} for seed in (11, 12)]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items() if ".sites." not in name}


def kl(model, batches=BATCHES):
    with torch.no_grad(), as_qcfs(model):
        targets = [model(**batch).logits for batch in batches]
    with torch.no_grad():
        return sum(float(logits_kl(model(**batch).logits, t)) for batch, t in zip(batches, targets, strict=True))


@pytest.mark.parametrize("family", ["gpt2", "opt_projected", "llama"])
@pytest.mark.parametrize("time", [{"timesteps": 2, "coding": "rate"}, {"timesteps": 4, "coding": "sigma_delta"}])
def test_stage2_comes_closer_to_the_qcfs_model_and_freezes_weights(family, time):
    model = tiny.snn(family, levels=8, **time)
    frozen, before = weights(model), kl(model)
    reports = calibrate(model, BATCHES, CalibrationOptions(align_steps=6, global_steps=6))
    assert kl(model) < 0.97 * before
    assert all(torch.equal(value, frozen[name]) for name, value in weights(model).items())
    assert all(
        report.by_site <= report.before + 1e-6 and report.by_layer <= report.by_site + 1e-6 for report in reports
    )
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_stage2_is_deterministic_and_per_time():
    first, second = (tiny.snn("gpt2", timesteps=2, coding="rate") for _ in range(2))
    for model in (first, second):
        calibrate(model, BATCHES, CalibrationOptions(align_steps=2, global_steps=2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    logits = first(**BATCHES[0]).logits
    first.set_timesteps(3)
    calibrate(first, BATCHES, CalibrationOptions(align_steps=0, global_steps=0))
    first.set_timesteps(2)
    assert torch.equal(first(**BATCHES[0]).logits, logits)
    assert first.config.quantization_config.neurons == ["rate_mean_2", "rate_mean_3"]


def test_failed_calibration_leaves_nothing_behind():
    model = tiny.snn("gpt2", timesteps=2, coding="rate")

    def fails(*_: Any) -> None:
        raise IndexError

    broken = model.lm_head.register_forward_hook(fails)
    with pytest.raises(IndexError):
        calibrate(model, BATCHES)
    broken.remove()
    assert all(len(site.neurons) == 0 for site in sites_of(model).values())
    calibrate(model, BATCHES, CalibrationOptions(align_steps=1, global_steps=1))
    logits = model(**BATCHES[0]).logits
    broken = model.lm_head.register_forward_hook(fails)
    with pytest.raises(IndexError):
        calibrate(model.train(), BATCHES)
    broken.remove()
    assert model.training
    assert torch.equal(model.eval()(**BATCHES[0]).logits, logits), "an earlier calibration outlives a failed one"


def test_stage2_refuses_what_it_cannot_do():
    with pytest.raises(DataError, match="no calibration batches"):
        calibrate(tiny.snn("gpt2", timesteps=2), [])
    with pytest.raises(FasError, match="synchronous"):
        calibrate(tiny.snn("gpt2", timesteps=8, levels=8, schedule="layerwise"), BATCHES)
    with pytest.raises(FasError, match="convert it first"):
        calibrate(tiny.ann("gpt2"), BATCHES)


BLOCKS = tiny.tokens(24, 9, seed=5)


def test_stage1_learns():
    model = tiny.qcfs_model("llama", levels=4)
    ids = BLOCKS[:8]
    before = model(input_ids=ids, labels=ids).loss.item()
    fine_tune(model, Blocks(ids), Stage1Options(steps=30, batch_size=4, lr=3e-3, distill=0.0))
    assert model(input_ids=ids, labels=ids).loss.item() < before - 0.3


def test_scales_have_their_own_learning_rate():
    model = tiny.qcfs_model("gpt2")
    start = copy.deepcopy(model.state_dict())
    fine_tune(model, Blocks(BLOCKS), Stage1Options(steps=3, batch_size=4, lr=0.0, scale_lr=1e-2, distill=0.0))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed
    assert all(name.endswith("log_scale") for name in changed)


def test_distillation_alone_ignores_the_labels_and_pulls_towards_the_ann():
    ann, model = tiny.ann("gpt2"), tiny.qcfs_model("gpt2", levels=3)
    options = Stage1Options(steps=40, batch_size=8, lr=5e-3, distill=1.0)

    def distance():
        with torch.no_grad():
            return float(logits_kl(model(input_ids=BLOCKS).logits, ann(input_ids=BLOCKS).logits))

    before = distance()
    fine_tune(model, Blocks(BLOCKS), options, teacher=ann)
    assert distance() < 0.85 * before
    assert not any(parameter.requires_grad for parameter in ann.parameters())


def test_control_sees_the_same_data_in_the_same_order(monkeypatch):
    seen = []
    compute = Stage1Trainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        seen.append(inputs["input_ids"].clone())
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Stage1Trainer, "compute_loss", spy)
    options = Stage1Options(steps=4, batch_size=4)
    fine_tune(tiny.ann("gpt2"), Blocks(BLOCKS), options)
    fine_tune(tiny.qcfs_model("gpt2"), Blocks(BLOCKS), options, teacher=tiny.ann("gpt2"))
    assert len(seen) == 8
    assert all(torch.equal(a, b) for a, b in zip(seen[:4], seen[4:], strict=True))


def test_prepare_changes_nothing_when_it_refuses():
    model = tiny.ann("gpt2")
    before = str(model)
    with pytest.raises(DataError, match="no calibration batches"):
        fas.prepare(model, fas.SpikingConfig(), [])
    assert str(model) == before


def test_initial_scale_beats_its_neighbours():
    model = tiny.qcfs_model("gpt2", levels=6)
    site = sites_of(model)["transformer.h.0.attention_input"]
    caught = []
    handle = site.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    ids = tiny.tokens(4, 9, seed=2)
    with torch.no_grad():
        model(input_ids=ids)
        handle.remove()
        x = caught[0].flatten(0, 1)
        errors = []
        for factor in (0.5, 1.0, 2.0):
            step = site.scale * factor / 6
            errors.append(((x / step + 0.5).floor().clamp(-6, 6) * step - x).square().mean(0))
    assert (errors[1] <= errors[0] + 1e-7).float().mean() > 0.95
    assert (errors[1] <= errors[2] + 1e-7).float().mean() > 0.95


@pytest.mark.filterwarnings("ignore:8 timesteps are few")
@pytest.mark.parametrize("rotation", ["hadamard", "none"])
def test_a_fine_grid_computes_what_the_ann_does(rotation):
    model = tiny.qcfs_model("llama", levels=1024, timesteps=8, rotation=rotation)
    assert {site.rotation.block for name, site in sites_of(model).items() if "ffn_hidden" in name} == {
        4 if rotation == "hadamard" else 1
    }
    ids = tiny.tokens(4, 9, seed=2)  # what the model was prepared on: nothing is clipped
    with torch.no_grad():
        wanted, found = tiny.ann("llama")(ids).logits, model(ids).logits
    assert (found - wanted).square().mean() < 1e-4 * wanted.square().mean()


def test_rotated_readers_compute_the_same():
    torch.manual_seed(0)
    for reader in (torch.nn.Linear(12, 5), Conv1D(5, 12)):
        x = torch.randn(3, 12)
        before = reader(x)
        rotate_reader(reader, Rotation(4))
        torch.testing.assert_close(reader(rotate(x, Rotation(4))), before)


def test_what_a_unit_leaves_out_of_gelu_goes_into_the_bias():
    ids = tiny.tokens(4, 9, seed=2)  # what the model was prepared on
    model, ann = tiny.qcfs_model("gpt2", "ffn"), tiny.ann("gpt2")
    outputs = []
    for network in (ann, model):
        layer = network.transformer.h[0].mlp
        handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
        with torch.no_grad():
            network(ids)
        handle.remove()
    torch.testing.assert_close(outputs[1].mean((0, 1)), outputs[0].mean((0, 1)), rtol=1e-3, atol=1e-3)


def test_rotation_belongs_to_stage_1():
    model = tiny.snn("llama")
    with pytest.raises(FasError, match="rotation"):
        model.set_timesteps(4, rotation="none")
