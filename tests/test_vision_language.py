"""Vision–language models: towers, projectors and text models are segments, one after another."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import (
    CODINGS,
    STRATEGIES,
    check_events,
    check_generation,
    check_order,
    check_reload,
    check_rows,
    check_without_time,
    out,
)
from tiny import COVERAGES
from tiny_vl import IMAGE, MODELS, ann, batch, qcfs_model, row, snn
from torch import Tensor, nn

import fas
from fas.calibration import CalibrationOptions
from fas.errors import DataError, FasError
from fas.models import find_placements, find_segments
from fas.report.inspection import Workload, inspect_model
from fas.runtime import attention
from fas.runtime.control import as_qcfs, sites_of
from fas.runtime.reclassed import CLASSES, attention_as
from fas.runtime.spikes import counting

models = pytest.mark.parametrize("name", MODELS)


def every(names: Iterable[str]) -> Any:
    """Models × codings: idefics3, smolvlm's twin, with one coding."""
    pairs = [(n, c) for n in names for c in CODINGS if n != "idefics3" or c == "sigma_delta"]
    return pytest.mark.parametrize(("name", "coding"), pairs)


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def prompt(name: str) -> dict[str, Tensor]:
    """What `generate` takes."""
    return double({key: value for key, value in batch(name).items() if "labels" not in key and "decoder" not in key})


@models
def test_sites(name: str) -> None:
    for coverage in COVERAGES[:2]:
        assert len(sites_of(qcfs_model(name, coverage))) == MODELS[name][3][coverage]
    model = snn(name)
    check_order(model, batch(name))
    read = {
        id(m)
        for segment in find_segments(model)
        for p in find_placements(segment, fas.SpikingConfig())
        for m in p.consumers
    }
    linears = [m for s in find_segments(model) for m in s.module.modules() if isinstance(m, nn.Linear)]
    unread = 6 if name == "llava" else 0
    assert len(linears) - len(read) == unread, "no linear layer of a segment is left out, but those that nothing reads"


@pytest.mark.parametrize(("layers", "sites"), [(-2, {0, 1}), (-1, {0, 1, 2}), (1, {0}), ([-3, -2], {0, 1})])
def test_layers_that_llava_does_not_read_have_no_sites(layers: Any, sites: set[int]) -> None:
    model_class, config_class, settings, *_ = MODELS["llava"]
    model = model_class(config_class(**settings | {"vision_feature_layer": layers}))
    vision, projector, text = find_segments(model)
    assert [s.name for s in (vision, projector, text)] == [
        "model.vision_tower", "model.multi_modal_projector", "model.language_model",
    ]  # fmt: skip
    places = find_placements(vision, fas.SpikingConfig())
    assert {int(place.name.split(".")[4]) for place in places} == sites
    assert len(find_placements(text, fas.SpikingConfig())) == 8


@every(MODELS)
def test_loaded_model_is_bit_identical(name: str, coding: str, tmp_path: Path) -> None:
    inputs = batch(name)
    for coverage in ("ffn", "linear") if coding == "sigma_delta" else ("linear",):
        model = snn(name, coverage, **CODINGS[coding])
        check_reload(model, inputs, tmp_path / coverage)
    if coding == "sigma_delta":
        low = type(model).from_pretrained(tmp_path / "linear", dtype=torch.bfloat16)
        halved = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
        check_reload(low, halved, tmp_path / "bf16")


@models
def test_layerwise_and_settled_neurons_equal_the_qcfs_model(name: str) -> None:
    model = snn(name, levels=3).double()
    check_without_time(model, double(batch(name)), MODELS[name][4])


@every(tuple(MODELS))
def test_events_equal_the_folded_run(name: str, coding: str) -> None:
    for coverage in COVERAGES[:2]:
        check_events(snn(name, coverage, **CODINGS[coding]).double(), double(batch(name)))


@models
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cached_generation_equals_uncached(name: str, strategy: str) -> None:
    generated = check_generation(snn(name).double(), prompt(name), strategy)
    assert len(generated[:, -6:].unique()) > 5


@models
def test_the_settled_cache_generates(name: str) -> None:
    model = snn(name).double()
    model.set_timesteps(1)
    exact = check_generation(model, prompt(name), "beam")
    model.set_timesteps(cache="settled")
    assert torch.equal(check_generation(model, prompt(name), "beam"), exact)
    model.set_timesteps(4)
    assert model.generate(**prompt(name), max_new_tokens=6).shape[0] == 3


@every(MODELS)
def test_rows_of_a_batch_do_not_meet(name: str, coding: str) -> None:
    model = snn(name, **CODINGS[coding]).double()
    if name == "blip_vqa":  # gives a loss, which is the mean of its rows
        alone = torch.stack([out(model, **double(row(name, index))) for index in range(3)])
        torch.testing.assert_close(out(model, **double(batch(name))), alone.mean(0))
    else:
        check_rows(model, double(batch(name)), [double(row(name, index)) for index in range(3)])


@models
def test_unknown_tensor_arguments_are_refused(name: str) -> None:
    model = snn(name)
    segment = next(s for s in find_segments(model) if s.family.block).module
    with pytest.raises(FasError, match=f"{type(segment).__name__} got the tensor argument 'unknown', which FAS cannot"):
        segment(torch.zeros(2, 3, 12, 12), unknown=torch.ones(2))


def test_images_of_different_sizes_in_one_sequence() -> None:
    """Qwen2-VL packs the patches of all images: the fold repeats patches and sizes together."""
    model = snn("qwen2_vl").double()
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(9, 90, (1, 4), generator=generator)

    def inputs(*grids: list[int]) -> dict[str, Tensor]:
        patches = [torch.randn(t * h * w, 96, generator=torch.Generator().manual_seed(h)) for t, h, w in grids]
        places = [torch.full((1, t * h * w // 4), IMAGE) for t, h, w in grids]
        ids = torch.cat([part for place in places for part in (torch.tensor([[7]]), place, text)], 1)
        return double(
            {
                "input_ids": ids,
                "pixel_values": torch.cat(patches),
                "image_grid_thw": torch.tensor(grids),
                "mm_token_type_ids": (ids == IMAGE).int(),
            }
        )

    small, large = inputs([1, 4, 4]), inputs([1, 8, 4])
    both = inputs([1, 4, 4], [1, 8, 4])
    alone = [model.model.visual(i["pixel_values"], grid_thw=i["image_grid_thw"]).pooler_output for i in (small, large)]
    together = model.model.visual(both["pixel_values"], grid_thw=both["image_grid_thw"]).pooler_output
    torch.testing.assert_close(together, torch.cat(alone))
    check_events(model, both)
    torch.testing.assert_close(out(model, **both)[:, : small["input_ids"].shape[1]], out(model, **small))


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_rows_with_different_numbers_of_images(name: str) -> None:
    """Images of zeros are padding, the tower sees fewer rows than the batch has images."""
    model = snn(name).double()
    one, other = double(row(name, 0)), double(row(name, 2))
    two = {key: value.clone() for key, value in one.items()}
    two["input_ids"] = torch.cat([torch.full((1, 8), IMAGE), one["input_ids"][:, -3:]], 1)
    two["pixel_values"] = torch.cat([one["pixel_values"], other["pixel_values"]], 1)
    padded = {key: torch.cat([one[key], two[key]]) for key in ("input_ids", "attention_mask")}
    images = torch.cat([one["pixel_values"], torch.zeros_like(one["pixel_values"])], 1)
    padded["pixel_values"] = torch.cat([images, two["pixel_values"]])
    check_rows(model, padded, [one, two])
    check_events(model, padded)


@models
def test_hidden_states_have_the_rows_of_the_batch(name: str) -> None:
    model, inputs = snn(name), batch(name)
    if name == "git":
        with pytest.raises(FasError, match="output_hidden_states would record the layers of GitEncoder in folded time"):
            out(model, **inputs, output_hidden_states=True)
        with as_qcfs(model):
            outputs = model(**inputs, output_hidden_states=True)
    else:
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
    hidden = outputs.get("hidden_states") or outputs["language_model_outputs"].hidden_states
    assert {state.shape[0] for state in hidden} == {3}


def test_padding_is_that_of_the_text() -> None:
    model, inputs = snn("llava"), batch("llava")
    with counting(model) as spikes:
        out(model, **inputs)
    neurons = {name: count.neurons for name, count in spikes.sites.items()}
    assert neurons["model.language_model.layers.0.ffn_input"] == int(inputs["attention_mask"].sum()) * 32
    assert neurons["model.vision_tower.encoder.layers.0.ffn_input"] == 3 * 10 * 24
    assert neurons["model.multi_modal_projector.projector_input"] == 3 * 9 * 24


def test_batches_must_use_every_part() -> None:
    text = {key: value[:, -5:] for key, value in batch("llava").items() if key != "pixel_values"}
    with pytest.raises(DataError, match=r"do not reach 10 of 18 sites, first model\.vision_tower\.encoder\.layers\.0"):
        fas.prepare(ann("llava"), fas.SpikingConfig(), [text])
    model = ann("llava")
    fas.prepare(model, fas.SpikingConfig(ignore=(r"re:model\.(vision_tower|multi_modal_projector)\..*",)), [text])
    assert len(sites_of(model)) == 8
    assert out(fas.convert(model), **batch("llava")).shape[0] == 3


@pytest.mark.parametrize("coverage", ["attention", "full"])
@models
def test_attention_spikes_in_every_family(name: str, coverage: str) -> None:
    check_events(snn(name, coverage).double(), double(batch(name)))
    check_order(snn(name, coverage).double(), double(batch(name)))
    if name != "blip_vqa":
        assert len(check_generation(snn(name, coverage).double(), prompt(name), "greedy")) == 3


@pytest.mark.parametrize("name", ["blip", "blip_vqa", "git", "qwen2_vl"])
def test_reclassed_attention_computes_what_it_did(name: str) -> None:
    """Modules that ignore the interface get another class and nothing else; what they compute stays, also in a pickle."""
    model, inputs = ann(name).double(), double({**row(name, 0)})
    expected = out(model, **inputs)
    classes = [type(module).__name__ for module in model.modules()]
    with attention_as(model, attention.NAME):
        changed = {type(module).__name__ for module in model.modules()} - set(classes)
        assert changed
        assert all(kind.removeprefix("Spiking") in CLASSES for kind in changed)
        # GIT's vision tower has a softmax in fp32
        torch.testing.assert_close(out(model, **inputs), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(out(pickle.loads(pickle.dumps(model)), **inputs), out(model, **inputs))
    assert [type(module).__name__ for module in model.modules()] == classes
    assert torch.equal(out(model, **inputs), expected)


def test_images_of_different_sizes_are_padded_for_attention() -> None:
    """Qwen2-VL packs images of any size; as rows of a batch the smaller ones see no padding."""
    model = ann("qwen2_vl").double()
    tower = model.model.visual
    patches = torch.randn(16 + 24, 96, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    grid = torch.tensor([[1, 4, 4], [1, 4, 6]])
    with torch.no_grad():
        expected = tower(patches, grid_thw=grid)[0]
        with attention_as(model, attention.NAME):
            torch.testing.assert_close(tower(patches, grid_thw=grid)[0], expected)


@models
def test_inspection(name: str, tmp_path: Path) -> None:
    model = ann(name)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    found = inspect_model("tiny", str(tmp_path), "linear", Workload())
    assert found.architecture == type(model).__name__
    assert sum(group.count for group in found.sites) == MODELS[name][3]["linear"]
    assert 0 < found.macs_per_token["covered"] <= found.macs_per_token["blocks"]


@pytest.mark.parametrize("name", ["llava", "git", "qwen2_vl", "blip2"])
def test_stage_2_calibrates_every_segment(name: str) -> None:
    model = snn(name, timesteps=2, levels=3)
    inputs = {key: value for key, value in batch(name).items() if key != "attention_mask"}
    with as_qcfs(model):
        target = out(model, **inputs)
    before = (out(model, **inputs) - target).square().mean()
    fas.calibrate(model, [inputs], CalibrationOptions(align_steps=2, global_steps=2))
    assert (out(model, **inputs) - target).square().mean() < before
