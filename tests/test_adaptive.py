"""Adaptive T: settled runs are full runs, what was never emitted is not counted, confident runs are shorter networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import tiny_vl
import torch
from adapting import CODINGS, LONG, T, model_of, no_grad, tiny_inputs, trains, ways  # noqa: F401 — the fixture turns gradients off
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoder_decoder import inputs_for as t5_inputs
from test_encoder_decoder import snn as t5_snn
from torch import Tensor
from transformers import DynamicCache

import fas
from fas.errors import ConfigError, FasError
from fas.neurons import sigma_delta
from fas.neurons.settled import restless
from fas.runtime.adaptive import Run, rows_at
from fas.runtime.control import as_qcfs, clock_of, sites_of
from fas.runtime.events import EventExecutor
from fas.runtime.spikes import counting

# One neuron


def loop(
    inputs: list[float], steps: list[int], zones: list[float], v_init: float, a_init: int, levels: int, signed: bool
) -> tuple[list[int], list[int]]:
    """Plain loop: spikes of each step, and the state after each timestep (the unit of the grid is 1)."""
    state, spikes, states = a_init, [], []
    each, low = len(steps) // len(inputs), -levels if signed else 0
    for micro, (k, zone) in enumerate(zip(steps, zones, strict=True)):
        u = (min(max(inputs[micro // each], low), levels) - state) / k + v_init
        spike = 1 if u >= 1 + zone else -1 if u < -zone else 0
        spike = spike if low <= state + k * spike <= levels else 0
        state += k * spike
        spikes.append(spike)
        if (micro + 1) % each == 0:
            states.append(state)
    return spikes, states


@settings(max_examples=300)
@given(data=st.data(), levels=st.integers(1, 12), signed=st.booleans(), each=st.integers(1, 2))
def test_a_neuron_can_tell_whether_it_will_fire_again(
    data: st.DataObject, levels: int, signed: bool, each: int
) -> None:
    """Against the future itself: its input held from t on, run to the end. Ties included, in eighths."""
    timesteps = data.draw(st.integers(1, 6))
    count = timesteps * each
    steps = data.draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=count, max_size=count))
    zones = data.draw(st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5]), min_size=count, max_size=count))
    inputs = [n / 8 for n in data.draw(st.lists(st.integers(-110, 110), min_size=timesteps, max_size=timesteps))]
    v_init, a_init = data.draw(st.sampled_from([0.25, 0.5, 0.75])), data.draw(st.integers(0, levels))
    spikes, _ = loop(inputs, steps, zones, v_init, a_init, levels, signed)
    one = torch.ones(1, dtype=torch.float64)
    arguments = (one * levels, one * v_init, one * a_init, steps, levels, signed, zones)
    rows = torch.tensor(inputs, dtype=torch.float64)[:, None]
    _, fired = sigma_delta(rows, *arguments)
    assert fired.flatten().tolist() == spikes
    said = restless(rows, fired, *arguments).flatten().tolist()
    for t in range(1, timesteps + 1):
        held = inputs[:t] + [inputs[t - 1]] * (timesteps - t)
        future, _ = loop(held, steps, zones, v_init, a_init, levels, signed)
        assert said[t - 1] == any(future[t * each :]), (t, held)


def test_what_would_leave_the_grid_is_no_unrest() -> None:
    """At the upper end 8 would be a spike of the step 4 to 12: suppressed, so 7.9 (held at 6) rests unless a 1 comes."""
    one = torch.ones(1)
    rows = torch.full((3, 1), 7.9)
    for steps, moves in ((4, 2, 4), [True, False, False]), ((4, 2, 1), [True, True, False]):
        arguments = (one * 8, one / 2, one * 0, steps, 8, True)
        assert restless(rows, sigma_delta(rows, *arguments)[1], *arguments).flatten().tolist() == moves


# Settled


def last_spike(fired: list[tuple[str, Tensor]], batch: int) -> list[int]:
    """The last timestep in which any neuron of each sequence fired (1 if none did)."""
    found = torch.ones(batch, dtype=torch.int64)
    for _, spikes in fired:
        by_time = spikes.flatten(1).view(len(spikes), batch, -1).any(-1)
        time = torch.arange(1, len(spikes) + 1)[:, None]
        found = torch.maximum(found, (by_time * time).amax(0))
    return found.tolist()


@ways
def test_a_settled_run_is_the_full_run_and_stops_with_its_last_spike(way: str) -> None:
    model = model_of(way)
    inputs = tiny_inputs(model)
    batch = next(iter(inputs.values())).reshape(-1, *next(iter(inputs.values())).shape[2 if way == "choices" else 1 :])
    full, fired = trains(model, **inputs)
    with counting(model) as whole:
        model(**inputs)
    with fas.adaptive(model) as found, counting(model) as count:
        got = model(**inputs)
    assert torch.equal(got.logits, full.logits)
    assert found.timesteps == last_spike(fired, len(batch))
    assert found.mean_timesteps < clock_of(model).config.timesteps
    assert {n: s.by_timestep.tolist() for n, s in count.sites.items()} == {
        n: s.by_timestep.tolist() for n, s in whole.sites.items()
    }
    assert count.per_neuron == whole.per_neuron > 0
    assert clock_of(model).early is None


def test_calibrated_sites_settle_by_their_own_steps_and_dead_zones() -> None:
    model = tiny.snn("gpt2", "linear", **LONG).double()
    for number, site in enumerate(sites_of(model).values()):
        own = site.add_parameters(clock_of(model).config.neuron_key)
        own.steps.copy_(torch.tensor([8.0, 4, 2, 2] + [1.0] * 20 if number % 2 else [4.0, 2] + [1.0] * 22))
        own.dead_zone.fill_(0.25)
        own.v_init.data.fill_(0.375)
        own.a_init.fill_(number % 3)
    ids = tiny.tokens(4, 3)
    full, fired = trains(model, input_ids=ids)
    with fas.adaptive(model) as found:
        assert torch.equal(model(ids).logits, full.logits)
    assert found.timesteps == last_spike(fired, 4)
    assert found.mean_timesteps < T


def test_hidden_states_and_the_loss_are_those_of_the_full_run() -> None:
    model, ids = model_of("gpt2"), tiny.tokens(3, 4)
    full = model(ids, labels=ids, output_hidden_states=True)
    with fas.adaptive(model):
        got = model(ids, labels=ids, output_hidden_states=True)
    assert torch.equal(got.loss, full.loss)
    assert all(map(torch.equal, got.hidden_states, full.hidden_states))


STOPS = pytest.mark.parametrize(
    ("way", "confidence"),
    [("gpt2", None), ("llama", None), ("classifier", None), ("gpt2", 0.25), ("llama", 0.25), ("classifier", 0.7)],
)


@STOPS
def test_a_batch_gives_what_its_sequences_give_alone(way: str, confidence: float | None) -> None:
    model, ids = model_of(way), tiny.tokens(5, 3)
    with fas.adaptive(model, confidence=confidence) as together, counting(model) as count:
        logits = model(input_ids=ids).logits
    with fas.adaptive(model, confidence=confidence) as alone, counting(model) as single:
        each = torch.cat([model(input_ids=row[None]).logits for row in ids])
    assert together.timesteps == alone.timesteps
    assert len(set(together.timesteps)) > 1
    torch.testing.assert_close(logits, each)
    assert count.per_neuron == single.per_neuron


@STOPS
def test_padding_does_not_count(way: str, confidence: float | None) -> None:
    model, ids = model_of(way), tiny.tokens(4, 3)
    garbage = torch.cat([ids, tiny.tokens(4, 5, seed=9)], 1)
    mask = torch.tensor([[1] * 3 + [0] * 5] * 4)
    with fas.adaptive(model, confidence=confidence) as plain, counting(model) as count:
        model(input_ids=ids)
    with fas.adaptive(model, confidence=confidence) as padded, counting(model) as also:
        model(input_ids=garbage, attention_mask=mask)
    with fas.adaptive(model, confidence=confidence) as longer:
        model(input_ids=garbage)
    assert plain.timesteps == padded.timesteps != longer.timesteps
    # BERT's pooler and GPT-2's rows alike: the spikes of real tokens
    assert count.per_neuron == pytest.approx(also.per_neuron)


def test_several_segments_stop_one_after_another() -> None:
    model, inputs = t5_snn("gated", **LONG).double(), t5_inputs()
    full = model(**inputs).logits
    with fas.adaptive(model) as found:
        assert torch.equal(model(**inputs).logits, full)
    assert list(found.by_segment) == ["encoder", "decoder"]
    assert found.timesteps == found.by_segment["decoder"]
    assert found.mean_timesteps == sum(map(sum, found.by_segment.values())) / 3
    assert found.mean_timesteps < 2 * T


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "blip"])
def test_images_and_text(name: str) -> None:
    model = tiny_vl.snn(name, "linear", **LONG).double()
    inputs = {key: v.double() if v.is_floating_point() else v for key, v in tiny_vl.batch(name).items()}
    full = model(**inputs).logits
    with fas.adaptive(model) as found, counting(model):
        torch.testing.assert_close(model(**inputs).logits, full)
    assert len(found.by_segment) > 1
    with fas.adaptive(model, confidence=0.0) as early, counting(model) as count:
        model(**inputs)
    assert set(early.timesteps) == {1}
    assert list(early.by_segment) == list(found.by_segment)
    text = next(reversed(early.by_segment))
    assert any(site.by_timestep.sum() > 0 for n, site in count.sites.items() if not n.startswith(text))
    assert all(site.by_timestep[1:].sum() == 0 for n, site in count.sites.items() if n.startswith(text))


# Generation


def calls(found: fas.Adaptive, batch: int) -> list[list[int]]:
    return [found.timesteps[i : i + batch] for i in range(0, len(found.timesteps), batch)]


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}])
@pytest.mark.parametrize("way", ["gpt2", "llama"])
def test_generation_with_cache_equals_generation_without(way: str, strategy: dict[str, int]) -> None:
    """Tokens, and when each stopped: behind a cache the neurons of past tokens count, too."""
    model, ids = model_of(way), tiny.tokens(3, 3)
    generate = {"max_new_tokens": 6, "do_sample": False, **strategy}
    plain = model.generate(ids, **generate)
    found = []
    for use_cache in (True, False):
        with fas.adaptive(model) as early:
            assert torch.equal(model.generate(ids, use_cache=use_cache, **generate), plain)
        found.append(calls(early, 3 * strategy.get("num_beams", 1)))
    assert found[0] == found[1]
    assert len(found[0]) == 6
    assert sum(map(sum, found[0])) < T * 6 * len(found[0][0])


def test_the_settled_cache_waits_for_no_past_token() -> None:
    model, ids = tiny.snn("gpt2", cache="settled", **LONG).double(), tiny.tokens(3, 3)
    plain = model.generate(ids, max_new_tokens=6, do_sample=False)
    with fas.adaptive(model) as found:
        assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), plain)
    first, *others = calls(found, 3)
    assert len(others) == 5
    assert any(now < then for other in others for now, then in zip(other, first, strict=True))


def test_a_cache_that_was_filled_elsewhere_may_move_until_the_end() -> None:
    model, ids = model_of("gpt2"), tiny.tokens(2, 4)
    cache = model(ids[:, :3], use_cache=True).past_key_values
    with fas.adaptive(model) as found:
        model(ids[:, 3:], past_key_values=cache)
    assert found.timesteps == [T, T]


def test_encoder_decoders_generate() -> None:
    model, inputs = t5_snn("gated", **LONG).double(), t5_inputs()
    inputs = {"input_ids": inputs["input_ids"]}
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with fas.adaptive(model) as found:
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), plain)
    with fas.adaptive(model) as without:
        model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False)
    assert len(found.by_segment["encoder"]) == 3
    assert found.by_segment == without.by_segment


def test_confident_generation_says_each_token_when_it_is_sure() -> None:
    model, ids = model_of("gpt2"), tiny.tokens(1, 3)
    with fas.adaptive(model, confidence=0.3) as found:
        written = model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=False)
    wanted, row = [], ids
    for _ in range(5):
        with fas.adaptive(model, confidence=0.3) as alone:
            row = torch.cat([row, model(row, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)], 1)
        wanted += alone.timesteps
    assert torch.equal(written, row)
    assert found.timesteps == wanted


# Rows


@pytest.mark.parametrize("coding", CODINGS)
def test_rows_are_read_where_their_sequence_stopped(coding: str) -> None:
    """Of B·n rows those of a sequence stand together; rows that cannot be told apart wait for the last sequence."""
    clock = clock_of(tiny.snn("gpt2", **CODINGS[coding]))
    rows = torch.randn(6 * 4, 5, generator=torch.Generator().manual_seed(0))
    by_time = rows.view(6, 4, 5)
    if coding == "step":  # the network says the mean
        by_time = torch.stack([by_time[: t + 1].mean(0) for t in range(6)])
    assert torch.equal(rows_at(rows, clock, torch.tensor([2, 6])), torch.cat([by_time[1, :2], by_time[5, 2:]]))
    assert torch.equal(rows_at(rows, clock, torch.tensor([2, 1, 4])), by_time[3])


def test_spikes_of_rows_that_cannot_be_told_apart_count_until_the_last_sequence_stops() -> None:
    clock = clock_of(tiny.snn("gpt2", **CODINGS["rate"]))
    run = Run(torch.nn.Identity(), clock, 2, None, None, torch.zeros(6, 2, dtype=torch.bool))
    total = torch.zeros(6, dtype=torch.int64)
    run.deferred.append((total, run.by_sequence(torch.ones(6, 3, 5, dtype=torch.int64)).sum(-1)))
    run.deferred.append((total, run.by_sequence(torch.ones(6, 4, 5, dtype=torch.int64)).sum(-1)))
    run.finish(torch.tensor([2, 4]))
    assert total.tolist() == [35, 35, 25, 25, 0, 0]


def test_packed_images_stop_together() -> None:
    """A row is a patch there, and patches attend to each other: one stop for all of a call."""
    model = tiny_vl.snn("qwen2_vl", "linear", **LONG)
    with fas.adaptive(model) as found:
        model(**tiny_vl.batch("qwen2_vl"))
    *images, text = found.by_segment.values()
    assert images
    assert all(len(stops) == 1 for stops in images)
    assert len(text) == len(tiny_vl.batch("qwen2_vl")["input_ids"])


# Refusals, and what is left behind


def test_what_cannot_stop_early_is_refused() -> None:
    model, ids = tiny.snn("gpt2", **CODINGS["sigma_delta"]), tiny.tokens()

    def refused(message: str, **arguments: Any) -> None:
        with pytest.raises(ConfigError, match=message), fas.adaptive(model, **arguments):
            model(ids)

    refused("nothing would stop a sequence", settled=False)
    refused("confidence=-0.1 is no probability", confidence=-0.1)
    refused("confidence=nan is no probability", confidence=math.nan)
    with fas.adaptive(model):
        refused("on already")
        with pytest.raises(ConfigError, match="the ledger runs all timesteps"):
            fas.ledger(model, {"input_ids": ids})
        with pytest.raises(ConfigError, match="the event executor runs all timesteps"):
            EventExecutor(model)
    with fas.adaptive(model, confidence=0.5), pytest.raises(ConfigError, match="use_cache=False"):
        model(ids, past_key_values=DynamicCache())
    with as_qcfs(model):
        refused("no timesteps to stop at")
    model.set_timesteps(8, schedule="layerwise")
    refused("layerwise schedule has no timesteps")
    model.set_timesteps(4, schedule="synchronous", coding="rate")
    refused("rate-coded values are running means")
    with fas.adaptive(model, settled=False, confidence=0.5):
        model(ids)
    with pytest.raises(FasError, match="convert it first"), fas.adaptive(tiny.ann("gpt2")):
        pass


def test_rate_set_inside_is_refused_when_it_runs() -> None:
    model = tiny.snn("gpt2", **CODINGS["sigma_delta"])
    with fas.adaptive(model):
        model.set_timesteps(4, coding="rate")
        with pytest.raises(ConfigError, match="running means"):
            model(tiny.tokens())


@pytest.mark.parametrize("family", ["bert_answer", "clip_text"])
def test_a_model_without_logits_is_refused(family: str) -> None:
    model = tiny.snn(family, **CODINGS["sigma_delta"])
    with fas.adaptive(model, confidence=0.5), pytest.raises(ConfigError, match="gives no logits"):
        model(**tiny_inputs(model))


def test_a_bare_segment_settles_but_has_no_head_to_be_confident() -> None:
    model, ids = model_of("gpt2").transformer, tiny.tokens(3, 3)
    full = model(ids).last_hidden_state
    with fas.adaptive(model) as found:
        assert torch.equal(model(ids).last_hidden_state, full)
    assert found.mean_timesteps < T
    assert list(found.by_segment) == ["GPT2Model"]
    with pytest.raises(ConfigError, match="gives no logits"), fas.adaptive(model, confidence=0.5):
        pass
    assert clock_of(model).early is None


@pytest.mark.parametrize("confidence", [None, 0.3])
def test_an_error_inside_leaves_the_model_as_it_was(confidence: float | None) -> None:
    model, ids = tiny.snn("gpt2", **CODINGS["sigma_delta"]), tiny.tokens()
    full = model(ids).logits
    with fas.adaptive(model, confidence=confidence) as found:
        with pytest.raises(FasError, match="no sequence has run"):
            _ = found.mean_timesteps
        with pytest.raises(IndexError):
            model(ids + tiny.VOCAB)
        with as_qcfs(model):
            model(ids)  # no time, nothing to record
        assert found.timesteps == []
        model(ids)
        assert len(found.timesteps) == 3
    assert "forward" not in vars(model)
    assert "forward" not in vars(model.transformer)
    assert clock_of(model).depth == 0
    assert clock_of(model).stage == "snn"
    assert torch.equal(model(ids).logits, full)
