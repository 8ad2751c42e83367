"""Dry runs: what is counted equals what is there, grows with what is asked, and nothing is done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import folders
import pytest
import standins
import tiny
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from fas.cli import main
from fas.config import SpikingConfig
from fas.conversion.install import install
from fas.errors import FasError
from fas.models import planned
from fas.neurons.rotation import rotate
from fas.pipeline.dry_run import dry_run
from fas.pipeline.forwards import Architecture, Shape, evaluation, spiking_evaluation, training_step
from fas.pipeline.options import ConvertOptions
from fas.pipeline.recipes import read_recipe
from fas.pipeline.stages import Run
from fas.pipeline.traced import shapes_only, traced
from fas.report.plan import Plan
from fas.tasks.language_modeling import Blocks

CONFIG = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
DEEP = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=9, n_head=4, bos_token_id=0, eos_token_id=1)
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


def test_saved_tensors_are_what_autograd_saves() -> None:
    """An independent count of a real forward: storages that autograd holds, without those of weights and inputs."""
    model, shape = gpt2().train(), Shape(2, 16)
    install(model, planned(model, LINEAR), LINEAR, stage="qcfs")
    known = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    held: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return value

    ids = tiny.tokens(2, 16)
    known.add(ids.untyped_storage().data_ptr())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        output = model(input_ids=ids, labels=ids, use_cache=False)
    with shapes_only():
        other = gpt2().train()
        install(other, planned(other, LINEAR), LINEAR, stage="qcfs")
        inputs = shape.inputs()
        forward = traced(lambda: other(**inputs, use_cache=False))
    known |= {*held}
    pack(output.logits), pack(output.loss)  # which the caller holds
    assert sum(held.values()) == forward.kept


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


def test_nothing_without_values_stays_behind() -> None:
    config = SpikingConfig(coverage="linear", levels=8, timesteps=2)
    spiking_evaluation(lambda: tiny.ann("llama"), Shape(1, 8), config)
    x = torch.randn(3, 44)
    torch.testing.assert_close(rotate(rotate(x, 4), 4), x)  # the block of this model's FFN


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
