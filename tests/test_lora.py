"""Stage 1 by LoRA: what is trained, what is merged, and that the rest of a conversion does not see it."""

from __future__ import annotations

import sys
from typing import Any

import folders
import pytest
import tiny
import torch

from fas.cli import main
from fas.pipeline.load import load_ann, load_spiking
from fas.report.results import Results
from fas.tasks.language_modeling import Blocks
from fas.training import Lora, Stage1Options, fine_tune
from fas.training.lora import adapted
from fas.training.stage1 import Stage1Trainer

BLOCKS = tiny.tokens(24, 9, seed=5)
FAMILIES = ["gpt2", "llama", "opt_projected", "bert_sequence"]


@pytest.mark.parametrize(
    ("family", "coverage"), [*((f, "linear") for f in FAMILIES), ("gpt2", "full"), ("llama", "full")]
)
def test_merged_weights_compute_what_the_adapters_did(family: str, coverage: str) -> None:
    """Sites encode what both weight and adapter read, or give (`full`); afterwards the model is what it was, but for its
    weights."""
    model = tiny.qcfs_model(family, coverage, levels=8)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    inputs, shape = tiny.inputs_for(model), (str(model), list(model.state_dict()))
    before = model(**inputs).logits
    with adapted(model, Lora(4, 8.0)):
        left = {name for name, p in model.named_parameters() if name.endswith("log_scale") and not p.requires_grad}
        assert len(left) == sum(not flag for flag in flags)
        torch.testing.assert_close(model(**inputs).logits, before)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        wanted = model(**inputs).logits
    assert (wanted - before).abs().max() > 0.1
    torch.testing.assert_close(model(**inputs).logits, wanted, rtol=1e-4, atol=1e-4)
    assert (str(model), list(model.state_dict())) == shape
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize(("family", "own"), [("gpt2", 0), ("llama", 0), ("bert_sequence", 4)])
def test_only_adapters_scales_and_heads_have_optimizer_states(
    family: str, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a classifier also pooler and head, which may be new: two weights, two biases."""
    seen: list[Stage1Trainer] = []
    train = Stage1Trainer.train

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self)
        done = train(self, *args, **kwargs)
        names = {id(p): name for name, p in self.model.named_parameters()}
        self.trained = {names[id(p)] for p in self.optimizer.state}
        return done

    monkeypatch.setattr(Stage1Trainer, "train", watched)
    model = tiny.qcfs_model(family, levels=8)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    options = Stage1Options(steps=4, batch_size=4, lr=1e-2, scale_lr=1e-2, distill=0.0, lora=Lora(3, 6.0))
    examples: Any = Blocks(BLOCKS)
    if family == "bert_sequence":
        examples = _Classes(BLOCKS)
    fine_tune(model, examples, options)
    (trainer,) = seen
    others = {name for name in trainer.trained if "lora_" not in name and not name.endswith("log_scale")}
    assert len(others) == own
    assert any("lora_A" in name for name in trainer.trained)
    for name, value in model.state_dict().items():
        moved = value - start[name]
        if name.endswith("log_scale") or name in others:
            assert moved.abs().max() > 1e-3, name
        elif moved.abs().max() > 0:
            assert moved.ndim == 2, name
            assert 1 <= torch.linalg.matrix_rank(moved, rtol=1e-3) <= 3, name
    assert (
        sum(not torch.equal(value, start[name]) for name, value in model.state_dict().items() if value.ndim == 2) >= 8
    )


class _Classes(Blocks):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": torch.tensor(index % 3)}


def test_alpha_scales_what_adapters_add() -> None:
    moved = []
    for alpha in (4.0, 8.0):
        model = tiny.ann("gpt2")
        start = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
        with adapted(model, Lora(4, alpha)):
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.data.fill_(0.1)
        moved.append(model.transformer.h[0].mlp.c_fc.weight - start)
    torch.testing.assert_close(moved[0], torch.full_like(moved[0], 4 * 0.1 * 0.1))
    torch.testing.assert_close(moved[1], 2 * moved[0])


def test_a_failed_training_leaves_no_adapters() -> None:
    model = tiny.qcfs_model("gpt2")
    shape = str(model)
    with pytest.raises(RuntimeError, match="stop"), adapted(model, Lora()):
        raise RuntimeError("stop")
    assert str(model) == shape


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("lora")
    return root, folders.save_ann(root / "ann"), folders.save_text(root / "text.txt")


def command(place: Any, out: str, *more: str) -> list[str]:
    root, model, data = place
    return [
        "convert", "--model", model, "--data", data, "--out", str(root / out), "--stage1", "lora", "--stage1-steps", "4",
        "--batch-size", "2", "--length", "16", "--levels", "8", "--timesteps", "4", "--calibration-sequences", "4",
        "--eval-sequences", "4", "--quiet", *more,
    ]  # fmt: skip


def test_a_conversion_by_lora(place: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The control has adapters of the same rank; the folder is like any other."""
    root, *_ = place
    assert main(command(place, "out", "--lora-rank", "2", "--lr", "0.003", "--stage1-steps", "20")) == 0
    results = Results.read(root / "out" / "results.json")
    assert [row.name for row in results.rows] == ["ann", "control", "qcfs", "snn", "snn"]
    assert results.extra["control"]["fine_tuned_held_out_loss"] != results.extra["control"]["ann_held_out_loss"]
    ann, control = load_ann(place[1])[0], load_ann(str(root / "out" / "control"))[0]
    assert results.extra["control"]["chosen"] == "fine-tuned"
    moved = control.transformer.h[1].mlp.c_fc.weight - ann.transformer.h[1].mlp.c_fc.weight
    assert torch.linalg.matrix_rank(moved, rtol=1e-3) == 2
    assert torch.equal(control.transformer.wte.weight, ann.transformer.wte.weight)
    spiking = load_spiking(str(root / "out"))[0]
    moved = spiking.transformer.h[1].mlp.c_fc.weight - ann.transformer.h[1].mlp.c_fc.weight
    assert torch.linalg.matrix_rank(moved, rtol=1e-3) == 2


def test_without_peft_it_says_so_before_anything_is_computed(
    place: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(command(place, "refused")) == 2
    assert "in a clone of FAS: pip install '.[lora]'" in capsys.readouterr().err
    assert not list(place[0].glob("refused*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lora-rank", "0"], "lora_rank=0 is not valid"),
        (["--stage1", "half"], "choose 'full', 'lora', 'blocks' or 'none'"),
    ],
)
def test_options_are_checked(place: Any, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert main(command(place, "refused", *more)) == 2
    assert message in capsys.readouterr().err
