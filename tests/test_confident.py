"""Adaptive T: a confident sequence is a shorter network."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from adapting import CODINGS, T, model_of, no_grad, tiny_inputs, trains  # noqa: F401 — the fixture turns gradients off
from torch import Tensor
from transformers import PreTrainedModel

import fas
from fas.runtime.control import at_time
from fas.runtime.spikes import counting

# Confident: the network stopped after t is the network that has only t timesteps


def shorter(model: PreTrainedModel, coding: str, t: int) -> Any:
    """``model`` with the first ``t`` of its timesteps alone."""
    own = {"steps": CODINGS[coding]["steps"][:t]} if coding == "sigma_delta" else {}
    return at_time(model, timesteps=t, **own)


def threshold_for(confidences: Tensor) -> float:
    """Between two that occur ``[T, rows]``: the one at which most rows stop at different times."""
    values = confidences.flatten().sort().values
    middles = ((values[1:] + values[:-1]) / 2)[values.diff() > 1e-4]
    return max(middles.tolist(), key=lambda p: len(set(first_sure(confidences, p))))


def first_sure(confidences: Tensor, threshold: float) -> list[int]:
    """For each row of ``[T, rows]`` the first timestep at ``threshold``, or T."""
    return [next((t + 1 for t, p in enumerate(row) if p >= threshold), len(row)) for row in confidences.T.tolist()]


@pytest.mark.filterwarnings("ignore:.*constant inputs do not settle")
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bert_sequence", "bert_token", "vit_image"])
def test_a_confident_sequence_says_and_spikes_what_a_shorter_network_does(family: str, coding: str) -> None:
    model = tiny.snn(family, "linear", **CODINGS[coding])
    inputs = tiny_inputs(model, 6, 5)
    said, spikes, sure = [], [], []
    for t in range(1, 7):
        with shorter(model, coding, t), counting(model):
            output, fired = trains(model, **inputs)
        said.append(output.logits)
        spikes.append(sum(s.flatten(1).view(t, 6, -1).sum((0, 2)) for _, s in fired))
        largest = output.logits.softmax(-1).amax(-1)
        sure.append(largest if largest.ndim == 1 else largest.mean(1))
    confidences = torch.stack(sure)
    threshold = threshold_for(confidences)
    wanted = first_sure(confidences, threshold)
    with fas.adaptive(model, settled=False, confidence=threshold) as found, counting(model) as count:
        got = model(**inputs).logits
    assert found.timesteps == wanted
    assert len(set(wanted)) > 1
    torch.testing.assert_close(
        got, torch.stack([said[t - 1][row] for row, t in enumerate(wanted)]), rtol=1e-4, atol=1e-5
    )
    emitted = sum(int(spikes[t - 1][row]) for row, t in enumerate(wanted))
    assert sum(int(site.by_timestep.sum()) for site in count.sites.values()) == emitted
    assert found.histogram == [wanted.count(t) for t in range(1, max(wanted) + 1)]


def test_thresholds_at_the_ends() -> None:
    model, ids = tiny.snn("gpt2", **CODINGS["sigma_delta"]), tiny.tokens()
    full = model(ids).logits
    with fas.adaptive(model, settled=False, confidence=0.0) as at_once:
        model(ids)
    with fas.adaptive(model, settled=False, confidence=1.01) as never:
        assert torch.equal(model(ids).logits, full)
    assert at_once.timesteps == [1] * 3
    assert never.timesteps == [6] * 3
    assert never.histogram == [0, 0, 0, 0, 0, 3]


@pytest.mark.filterwarnings("ignore:.*constant inputs do not settle")
def test_only_the_tokens_that_get_logits_have_to_be_sure() -> None:
    model, ids = tiny.snn("gpt2", **CODINGS["sigma_delta"]), tiny.tokens(6)
    sure = []
    for t in range(1, 7):
        with shorter(model, "sigma_delta", t):
            sure.append(model(ids).logits[:, -1].softmax(-1).amax(-1))
    threshold = threshold_for(torch.stack(sure))
    with fas.adaptive(model, settled=False, confidence=threshold) as found:
        model(ids, logits_to_keep=1)
    assert found.timesteps == first_sure(torch.stack(sure), threshold)
    assert len(set(found.timesteps)) > 1


def test_the_loss_is_that_of_what_was_said() -> None:
    model, ids = tiny.snn("gpt2", **CODINGS["sigma_delta"]), tiny.tokens()
    with fas.adaptive(model, confidence=0.3):
        got = model(ids, labels=ids)
        as_tuple = model(ids, labels=ids, return_dict=False)
    own = torch.nn.functional.cross_entropy(got.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert got.loss.item() == pytest.approx(own.item(), rel=1e-5)
    assert torch.equal(as_tuple[1], got.logits)


def test_choices_of_one_question_stop_together() -> None:
    model = model_of("choices")
    inputs = tiny_inputs(model)
    with fas.adaptive(model, settled=False, confidence=0.6) as found:
        model(**inputs)
    assert found.timesteps[::2] == found.timesteps[1::2]
    assert min(found.timesteps) < T
