"""Scales are fitted on samples; sites that are sampled in several parts get what they get in one."""

from __future__ import annotations

import itertools

import pytest
import tiny
import torch
from test_progress import Heard

import fas
from fas.conversion import scales
from fas.conversion.scales import sampled
from fas.models import planned


@pytest.mark.parametrize(("family", "coverage"), [("llama", "full"), ("gpt2", "attention"), ("bert_mlm", "linear")])
def test_in_parts_or_at_once_the_model_is_the_same(family: str, coverage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = fas.SpikingConfig(coverage=coverage, center=True)
    found = []
    for room in (scales.ROOM, 1):
        monkeypatch.setattr(scales, "ROOM", room)
        model, heard = tiny.ann(family), Heard()
        batches = [tiny.inputs_for(model, 2, 9, seed) for seed in (1, 2)]
        fas.prepare(model, config, batches, progress=heard)
        titles = [task.title for task in heard.tasks if task.title.startswith("Sampling")]
        found.append((model.state_dict(), titles))
    (whole, (once,)), (parted, parts) = found
    assert f"{len(parts)} sites" in once
    assert parts[1] == f"Sampling the inputs of 1 sites (part 2 of {len(parts)})"
    for name, value in whole.items():
        assert torch.equal(value, parted[name]), name


@pytest.mark.parametrize("coverage", ["ffn", "full"])
def test_no_more_samples_are_held_than_there_is_room_for(coverage: str) -> None:
    model, room, heard = tiny.ann("gpt2"), 6_000_000, Heard()
    config = fas.SpikingConfig(coverage=coverage)
    places = [place for _, places in planned(model, config) for place in places]
    held: dict[int, list[int]] = {}
    for _, samples in sampled(model, places, config, [tiny.inputs_for(model, 80, 52)], heard, room):
        tensors = {id(value): value.nbytes for value in (*samples.inputs, *samples.targets)}
        held.setdefault(len(heard.tasks), []).append(sum(tensors.values()))
    parts = list(held.values())
    assert len(parts) > 1
    assert all(sum(sizes) <= room for sizes in parts)
    assert all(sum(sizes) + after[0] > room for sizes, after in itertools.pairwise(parts))
