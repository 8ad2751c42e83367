"""Dry runs: what is counted equals what is there, grows with what is asked, and nothing is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import folders
import pytest
import standins
import tiny
import tiny_vl
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForZeroShotImageClassification,
    CLIPConfig,
    GitConfig,
    GPT2Config,
    PreTrainedModel,
)

from fas.cli import main
from fas.config import SpikingConfig
from fas.conversion import scales
from fas.conversion.install import install
from fas.errors import ConfigError, FasError
from fas.models import planned
from fas.neurons.rotation import Rotation, rotate
from fas.pipeline.dry_run import dry_run
from fas.pipeline.forwards import Architecture, Build, Shape, evaluation, spiking_evaluation, training_step
from fas.pipeline.image_shapes import ImageShape
from fas.pipeline.options import ConvertOptions
from fas.pipeline.recipes import read_recipe
from fas.pipeline.stages import Run
from fas.pipeline.traced import shapes_only
from fas.report.plan import Plan
from fas.runtime.alive import traced
from fas.tasks.language_modeling import Blocks

CONFIG = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
DEEP = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=9, n_head=4, bos_token_id=0, eos_token_id=1)
GIT = GitConfig(**tiny_vl.MODELS["git"][2])
PLAIN = {"hidden_size": 32, "intermediate_size": 44, "num_attention_heads": 4}
LINEAR = SpikingConfig(coverage="linear", levels=8, timesteps=4)


def gpt2() -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(CONFIG)


def test_live_bytes_are_those_of_the_tensors_that_live() -> None:
    with shapes_only():
        given = torch.zeros(10, 10)

        def run() -> torch.Tensor:
            first = given + 1  # 400 bytes, and alive to the end of the next line
            second = torch.cat([first, first])
            del first
            return second.view(-1)[:5] * 1.0 + second.sum()

        cost = traced(run)
    # 400 + 800, then 20, 4 and 20 beside the 800
    assert cost.peak == 1200
    assert cost.kept == 20
    assert cost.written == 400 + 800 + 20 + 4 + 20


def test_products_are_counted() -> None:
    with shapes_only():
        layer, x = nn.Linear(6, 7, bias=False), torch.zeros(5, 6)
        assert traced(lambda: layer(x)).flops == 2 * 5 * 6 * 7


def git() -> PreTrainedModel:
    return Architecture(GIT, AutoModelForImageTextToText).build()


def texts_of_images() -> dict[str, torch.Tensor]:
    return {
        "input_ids": tiny.tokens(2, 16), "attention_mask": torch.ones(2, 16, dtype=torch.long), "labels": tiny.tokens(2, 16),
        "pixel_values": torch.randn(2, 3, 12, 12),
    }  # fmt: skip


@dataclass(eq=False)
class Saved:
    """What autograd holds, as long as it holds it."""

    value: torch.Tensor


@pytest.mark.parametrize(
    ("build", "shape", "given"),
    [
        (gpt2, Shape(2, 16), lambda: {"input_ids": (ids := tiny.tokens(2, 16)), "labels": ids}),
        (git, ImageShape(2, 26, pixels=(3, 12, 12), text=16), texts_of_images),
    ],
)
def test_saved_tensors_are_what_autograd_saves(build: Build, shape: Shape, given: Callable) -> None:
    """An independent count of a real forward: storages that autograd holds, without those of weights and inputs."""
    model, real = build().train(), given()
    install(model, planned(model, LINEAR), LINEAR, stage="qcfs")
    known = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers(), *real.values()]}
    saved: WeakSet[Saved] = WeakSet()

    def pack(value: torch.Tensor) -> Saved:
        saved.add(found := Saved(value))
        return found

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda found: found.value):
        output = model(**real, use_cache=False)
    with shapes_only():
        other = build().train()
        install(other, planned(other, LINEAR), LINEAR, stage="qcfs")
        inputs = shape.inputs()
        forward = traced(lambda: other(**inputs, use_cache=False))
    there = [*(found.value for found in saved), output.logits, output.loss]  # the caller holds the last two
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in there}
    assert sum(size for place, size in held.items() if place not in known) == forward.kept


def test_gradients_are_those_of_all_parameters() -> None:
    cost = training_step(gpt2, Shape(2, 16))
    assert cost.kept == 4 * sum(p.numel() for p in gpt2().parameters())
    prepared = training_step(gpt2, Shape(2, 16), LINEAR, distill=0.5)
    scales = 2 * (32 + 32 + 32 + 128)
    assert prepared.kept == cost.kept + 4 * scales


def test_deep_models_cost_what_few_layers_say() -> None:
    architecture = Architecture(DEEP, AutoModelForCausalLM)
    for run in (
        lambda build: training_step(build, Shape(2, 16), LINEAR, distill=0.5),
        lambda build: evaluation(build, Shape(2, 16)),
        lambda build: spiking_evaluation(build, Shape(1, 16), LINEAR),
    ):
        whole, few = run(architecture.build), architecture.cost(run)
        assert few.written == whole.written
        assert few.flops == whole.flops
        assert few.kept == whole.kept
        assert few.peak == whole.peak


def deep(name: str, **parts: int) -> Any:
    """The configuration of a tiny model that sees, with so many layers in its parts."""
    _, config_class, settings, *_ = tiny_vl.MODELS[name]
    own = {"num_hidden_layers": parts.pop("own")} if "own" in parts else {}
    return config_class(
        **settings | own | {part: settings[part] | {"num_hidden_layers": n} for part, n in parts.items()}
    )


DEEP_CLIP = CLIPConfig(
    text_config=PLAIN | {"vocab_size": 97, "max_position_embeddings": 64, "num_hidden_layers": 7},
    vision_config=PLAIN | {"image_size": 12, "patch_size": 4, "num_hidden_layers": 6}, projection_dim=16,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "auto_class", "shape", "stacks"),
    [
        (
            deep("llava", text_config=6, vision_config=9), AutoModelForImageTextToText,
            ImageShape(2, 29, pixels=(3, 12, 12), text=19), {"text_config": (6, 2), "vision_config": (9, 3)},
        ),
        (
            deep("git", own=6, vision_config=7), AutoModelForImageTextToText,
            ImageShape(2, 20, pixels=(3, 12, 12), text=10), {"": (6, 2), "vision_config": (7, 2)},
        ),
        (
            deep("blip2", text_config=6, vision_config=6, qformer_config=8), AutoModelForImageTextToText,
            ImageShape(2, 20, pixels=(3, 12, 12), text=14),
            {"text_config": (6, 2), "vision_config": (6, 2), "qformer_config": (8, 2)},
        ),
        (
            DEEP_CLIP, AutoModelForZeroShotImageClassification, ImageShape(2, 10, pixels=(3, 12, 12), text=8, classes=3),
            {"text_config": (7, 2), "vision_config": (6, 2)},
        ),
    ],
    ids=["llava", "git", "blip2", "clip"],
)  # fmt: skip
def test_each_stack_of_layers_costs_what_few_say(
    config: Any, auto_class: Any, shape: ImageShape, stacks: dict[str, tuple[int, int]]
) -> None:
    architecture = Architecture(config, auto_class)
    assert {stack.part: (stack.layers, stack.few) for stack in architecture.stacks if stack.deep} == stacks
    for run in (
        lambda build: training_step(build, shape, LINEAR),
        lambda build: spiking_evaluation(build, replace(shape, batch=1), LINEAR.replaced(timesteps=2)),
    ):
        whole, few = run(architecture.build), architecture.cost(run)
        assert replace(few, peak=0) == replace(whole, peak=0)
        # too low where it comes at another moment than with few layers, which is so at tiny sizes
        assert 0.97 * whole.peak <= few.peak <= whole.peak


def test_a_text_that_is_written_takes_a_cache() -> None:
    """Keys and values of all tokens, in each layer of the language model and for each timestep."""
    build = Architecture(deep("llava"), AutoModelForImageTextToText).build
    shape = ImageShape(2, 58, pixels=(3, 12, 12), text=48)
    sizes = 4 * 2 * 2 * 48 * 2 * 8  # fp32, keys and values, two rows of 48 tokens, two heads of 8 channels
    cached = [
        spiking_evaluation(build, replace(shape, writes=writes), LINEAR.replaced(timesteps=steps)).peak
        for steps in (2, 4)
        for writes in (False, True)
    ]
    grown = [cached[1] - cached[0], cached[3] - cached[2]]
    assert grown[1] - grown[0] == 2 * 2 * sizes


def test_nothing_without_values_stays_behind() -> None:
    config = SpikingConfig(coverage="linear", levels=8, timesteps=2)
    spiking_evaluation(lambda: tiny.ann("llama"), Shape(1, 8), config)
    x = torch.randn(3, 44)
    torch.testing.assert_close(rotate(rotate(x, Rotation(4)), Rotation(4)), x)  # the block of this model's FFN


def plan(place: dict[str, str], **options: object) -> Plan:
    asked = {"length": 16, "batch_size": 2, "calibration_sequences": 4, "timesteps": (4,)} | options
    return dry_run(ConvertOptions(**place, out=Path("nowhere"), **asked))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("dry")
    return {"model": folders.save_ann(root / "ann"), "data": folders.save_text(root / "text.txt")}


def part(found: Plan, stage: str, name: str) -> int:
    return next(s for s in found.stages if s.name.startswith(stage)).memory[name]


def test_weights_and_moments_are_exact(place: dict[str, str]) -> None:
    found = plan(place, batch_size=16)
    weights = 4 * sum(p.numel() for p in tiny.ann("gpt2").parameters())
    for stage in ("control", "Stage 1"):
        assert part(found, stage, "weights") == 2 * weights
        assert part(found, stage, "AdamW's moments") == 2 * weights
    assert part(found, "Stage 2", "weights") == weights
    assert [s.name for s in found.stages] == [
        "control", "scales", "Stage 1", "Stage 2, sigma-delta, T=4", "evaluation", "evaluation, layerwise",
        "evaluation, sigma-delta, T=4",
    ]  # fmt: skip


def test_files_are_as_large_as_they_say(place: dict[str, str], tmp_path: Path) -> None:
    from fas.pipeline.convert import run_conversion

    options = ConvertOptions(
        **place, out=tmp_path / "out", length=16, batch_size=2, calibration_sequences=4, timesteps=(4,), stage1_steps=1,
        eval_sequences=2, fit_steps=0,
    )  # fmt: skip
    said = dry_run(options).files
    run_conversion(options)
    for name in ("out/model.safetensors", "out/control/model.safetensors"):
        assert said[name] == pytest.approx((tmp_path / name).stat().st_size, rel=0.1)


@pytest.mark.parametrize(
    ("less", "more", "stage", "name"),
    [
        ({"batch_size": 2}, {"batch_size": 4}, "Stage 1", "activations"),
        ({"length": 16}, {"length": 32}, "Stage 1", "activations"),
        ({"coverage": "ffn"}, {"coverage": "attention"}, "Stage 1", "activations"),
        ({"timesteps": (4,)}, {"timesteps": (8,)}, "Stage 2", "activations"),
        ({"timesteps": (4,)}, {"timesteps": (8,)}, "Stage 2", "hidden states"),
        ({"calibration_sequences": 2}, {"calibration_sequences": 4}, "scales", "samples"),
    ],
)
def test_more_takes_more(place: dict[str, str], less: dict, more: dict, stage: str, name: str) -> None:
    assert part(plan(place, **less), stage, name) < part(plan(place, **more), stage, name)


def test_samples_of_sites_that_do_not_fit_together_take_more_passes(
    place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plan(place)
    monkeypatch.setattr(scales, "ROOM", 1)
    apart = plan(place)
    assert part(apart, "scales", "samples") == 4 * 64 * 128 * 2  # the FFN's hidden units, and what they stand in for
    assert part(whole, "scales", "samples") == 2 * (4 * 64 * (3 * 32 + 2 * 128))
    tokens = [next(s for s in found.stages if s.name == "scales").tokens for found in (whole, apart)]
    assert tokens == [64, 8 * 64]


def test_a_new_head_has_the_control_as_teacher(tmp_path: Path) -> None:
    recipe = read_recipe("bert-mrpc")
    model, data = standins.save_model(recipe, tmp_path / "model"), standins.save_data(recipe, tmp_path / "data")
    found = plan({"model": model, "data": data}, task="mrpc")
    weights = part(found, "control", "weights") // 2
    assert part(found, "Stage 1", "weights") == 3 * weights
    assert found.inspection.architecture == "BertForSequenceClassification"
    assert weights == 4 * found.inspection.parameters


def test_long_blocks_are_measured_few_at_once(tmp_path: Path) -> None:
    options = ConvertOptions(model="m", data="d", out=tmp_path)
    for length, rows in ((64, 16), (256, 16), (1024, 4), (9999, 1)):
        source = SimpleNamespace(evaluation=Blocks(torch.zeros(1, length, dtype=torch.long)))
        assert Run(options, None, None, source, torch.device("cpu")).at_once == rows
    assert Run(replace(options, task="sst2"), None, None, source, torch.device("cpu")).at_once == 16


def test_training_free_plans_no_training(place: dict[str, str]) -> None:
    names = [s.name for s in plan(place, stage1="none", stage2=False).stages]
    assert names == ["scales", "evaluation", "evaluation, layerwise", "evaluation, sigma-delta, T=4"]


def test_of_blocks_one_has_optimizer_states(place: dict[str, str]) -> None:
    """Of the two layers of the model half; the control is the ANN. Fine-tuning behind plans both as always."""
    whole = {s.name: s for s in plan(place, stage2=False).stages}
    blocks = {s.name: s for s in plan(place, stage1="blocks", stage2=False).stages}
    assert [name for name in blocks if name not in whole] == ["Stage 1 by blocks"]
    assert [name for name in whole if name not in blocks] == ["control", "scales", "Stage 1"]
    part = blocks["Stage 1 by blocks"].memory
    assert part["AdamW's moments"] == whole["Stage 1"].memory["AdamW's moments"] // 2
    assert part["gradients"] < whole["Stage 1"].memory["gradients"]
    tuned = [s.name for s in plan(place, stage1="blocks", stage1_finetune_steps=3, stage2=False).stages]
    assert tuned[:3] == ["control", "Stage 1 by blocks", "Stage 1"]


def test_a_dry_run_writes_nothing(place: dict[str, str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["convert", *(f"--{k}={v}" for k, v in place.items()), "--out", "out", "--length", "16", "--dry-run"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "Nothing was trained, loaded or written." in text
    assert "Peak memory" in text
    assert "Stage 2, sigma-delta, T=8" in text
    assert main([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["peak_bytes"] == max(sum(s["memory"].values()) for s in values["stages"])
    assert list(tmp_path.iterdir()) == []


def test_what_a_conversion_refuses_a_dry_run_refuses(place: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(FasError, match="neither a folder"):
        plan(place | {"model": str(tmp_path / "none")})
    with pytest.raises(FasError, match="beyond the model's context"):
        plan(place, length=65)
    tiny.snn("gpt2").save_pretrained(tmp_path / "snn")
    with pytest.raises(FasError, match="converted already"):
        plan(place | {"model": str(tmp_path / "snn")})


def seen(name: str, root: Path, **options: object) -> Plan:
    """The plan of a stand-in for the recipe ``name``."""
    recipe = read_recipe(name)
    place = {"model": standins.save_model(recipe, root / "model"), "data": standins.save_data(recipe, root / "data")}
    asked = {"batch_size": 2, "calibration_sequences": 4, "timesteps": (4,), "task": recipe.options["task"]}
    return dry_run(ConvertOptions(**place | asked | {"out": Path("nowhere")} | options))


def test_a_model_that_answers_is_planned(tmp_path: Path) -> None:
    found = seen("llava-1.5-7b-vqa", tmp_path)
    assert [s.name for s in found.stages] == [
        "control", "scales", "Stage 1", "Stage 2, sigma-delta, T=4", "evaluation", "evaluation, layerwise",
        "evaluation, sigma-delta, T=4",
    ]  # fmt: skip
    assert all(sum(s.memory.values()) > 0 and min(s.memory.values()) >= 0 and s.seconds > 0 for s in found.stages)
    assert found.inspection.architecture == "LlavaForConditionalGeneration"
    assert {*found.inspection.segments} == {"model.vision_tower", "model.multi_modal_projector", "model.language_model"}
    assert found.stages[4].does == "ANN, control and QCFS model on 6 images with text"
    # 23 rows and 3 epochs of them in twos; 5 patches and 32 tokens each
    assert found.stages[0].does.startswith("35 steps of 2 images with text")
    assert found.stages[0].tokens == (35 * 2 + 2 * 1) * 37
    assert "every image is taken to have 16 × 16 pixels, and 37 tokens with its text" in found.notes
    fewer = seen("llava-1.5-7b-vqa", tmp_path / "fewer", parts=("text",), stage1="none")
    assert fewer.stages[0].name == "scales"
    assert part(fewer, "scales", "samples") < part(found, "scales", "samples")


def test_a_head_for_other_classes_is_new(tmp_path: Path) -> None:
    found = seen("vit-base-cifar10", tmp_path)
    weights = 4 * found.inspection.parameters
    assert part(found, "Stage 1", "weights") == 3 * weights
    from transformers import ViTForImageClassification

    ViTForImageClassification.from_pretrained(
        tmp_path / "model", num_labels=3, ignore_mismatched_sizes=True
    ).save_pretrained(tmp_path / "three")
    same = dry_run(
        ConvertOptions(str(tmp_path / "three"), str(tmp_path / "data"), Path("nowhere"), task="image-classification")
    )
    assert 4 * same.inspection.parameters == weights
    assert part(same, "Stage 1", "weights") == 2 * weights


def test_images_that_are_not_here_are_assumed(tmp_path: Path) -> None:
    found = seen("clip-vit-b32-cifar10", tmp_path, data="owner/pictures")
    assert found.notes == [
        "owner/pictures is not here; taken to have 20,000 images to train on and 2,000 to evaluate on",
        "owner/pictures is taken to have 100 classes",
        "every image is taken to have 16 × 16 pixels, and each of 100 classes a text of 16 tokens",
    ]
    counted = seen("clip-vit-b32-cifar10", tmp_path / "here")
    assert part(counted, "Stage 1", "activations") < part(found, "Stage 1", "activations")
    assert counted.notes[-1].endswith("each of 3 classes a text of 16 tokens")


def test_images_that_shapes_do_not_describe_are_refused(place: dict[str, str], tmp_path: Path) -> None:
    for name, kind in (("idefics3", "Idefics3"), ("smolvlm", "SmolVLM"), ("qwen2_vl", "Qwen2VL")):
        model, config, settings, *_ = tiny_vl.MODELS[name]
        config(**settings, architectures=[model.__name__]).save_pretrained(tmp_path / name)
        with pytest.raises(
            ConfigError, match=f"cannot follow {kind}ForConditionalGeneration .*convert it without --dry-run"
        ):
            dry_run(ConvertOptions(str(tmp_path / name), "owner/name", Path("nowhere"), task="vqa"))
    for task, message in (
        ("captioning", "no model that answers or captions images"), ("image-classification", "cannot classify images"),
        ("zero-shot-image-classification", "no model that compares images with texts"),
    ):  # fmt: skip
        with pytest.raises(FasError, match=message):
            dry_run(ConvertOptions(place["model"], "owner/name", Path("nowhere"), task=task))
