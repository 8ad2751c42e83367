"""Published recipes against their equations."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from fas.errors import ConfigError
from fas.methods import PublishedOptions, calibrate_as_published
from fas.progress import Silent
from fas.runtime.control import as_qcfs, clock_of, sites_of

BATCHES = [{"input_ids": tiny.tokens(2, 9, seed)} for seed in (11, 12)]


class InterruptAtOnce(Silent):
    def advance(self, parts: int = 1, note: str = "") -> None:
        raise KeyboardInterrupt


def model_of(timesteps: int = 4) -> PreTrainedModel:
    model = tiny.snn("gpt2", "ffn")
    model.set_timesteps(timesteps, coding="rate", rows="step")
    return model


def test_its_coarse_stage_is_two_constants() -> None:
    model = model_of()
    assert calibrate_as_published(model, BATCHES, PublishedOptions(visits=0)) == []
    for site in sites_of(model).values():
        entry = site.parameters_for(clock_of(model).config)
        assert entry is not None
        torch.testing.assert_close(entry.threshold, 0.6 * site.scale)
        assert (entry.v_init == 0.2).all()


def test_its_loss_is_that_of_the_paper() -> None:
    """Activations from recorded spikes, KL written out: summed over all positions but the last."""
    model = model_of()
    calibrate_as_published(model, BATCHES, PublishedOptions(visits=0))
    one = {"input_ids": BATCHES[0]["input_ids"][:1]}
    spikes: dict[str, torch.Tensor] = {}
    wanted: dict[str, torch.Tensor] = {}
    clock_of(model).probe = spikes.__setitem__
    with torch.no_grad():
        student = model(**one, use_cache=False).logits
    clock_of(model).probe = None
    handles = [
        site.register_forward_hook(lambda site, args, out: wanted.__setitem__(site.name, out))
        for site in sites_of(model).values()
    ]
    with as_qcfs(model), torch.no_grad():
        teacher = model(**one, use_cache=False).logits
    for handle in handles:
        handle.remove()
    expected = torch.zeros(())
    for name, site in sites_of(model).items():
        expected += (spikes[name].mean(0) * 0.6 * site.scale - wanted[name]).square().mean()
    p, q = F.softmax(teacher[0, :-1], -1), F.log_softmax(student[0, :-1], -1)
    expected += (p * (p.log() - q)).sum()
    (first,) = calibrate_as_published(model_of(), BATCHES, PublishedOptions(visits=1))
    assert first == pytest.approx(float(expected), rel=1e-5)


def test_it_learns_and_leaves_weights_alone() -> None:
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = PublishedOptions(visits=64, lr=0.02)
    losses = calibrate_as_published(model, BATCHES, options)
    assert sum(losses[-4:]) < sum(losses[:4])
    rest, none = model_of(), model_of()
    calibrate_as_published(rest, BATCHES, PublishedOptions(visits=2))  # fewer than a step takes, and still a step
    calibrate_as_published(none, BATCHES, PublishedOptions(visits=0))
    assert any(not torch.equal(value, none.state_dict()[name]) for name, value in rest.state_dict().items())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    lean = model_of()
    calibrate_as_published(lean, BATCHES, PublishedOptions(visits=64, lr=0.02, weight_gradients=False))
    assert all(torch.equal(value, lean.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(math.isfinite(loss) for loss in losses)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_refused_where_the_paper_has_no_network() -> None:
    model = tiny.snn("gpt2", "ffn")
    model.set_timesteps(4, coding="sigma_delta")
    with pytest.raises(ConfigError, match="rows='step'"):
        calibrate_as_published(model, BATCHES)
    with pytest.raises(ConfigError, match="accumulate=0"):
        PublishedOptions(accumulate=0)


def test_an_interruption_brings_back_the_neurons_before() -> None:
    model = model_of()
    calibrate_as_published(model, BATCHES, PublishedOptions(visits=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    with pytest.raises(KeyboardInterrupt):
        calibrate_as_published(model, BATCHES, PublishedOptions(visits=9), InterruptAtOnce())
    assert model.training
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
