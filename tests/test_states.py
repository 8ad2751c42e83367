"""Distillation of hidden states: which states, which tokens, and that training brings them closer."""

import pytest
import tiny
import torch
from transformers import PreTrainedModel

from fas.losses import logits_loss
from fas.tasks.language_modeling import Blocks
from fas.training import Stage1Options, fine_tune
from fas.training.stage1 import Stage1Trainer
from fas.training.states import block_outputs, states_loss

BLOCKS = tiny.tokens(8, 12, 3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert_sequence"])
def test_the_states_are_those_that_transformers_reports(family: str) -> None:
    """Behind each block, in order; the last one without the norm that may follow it."""
    model = tiny.ann(family)
    with block_outputs(model) as found, torch.no_grad():
        reported = model(input_ids=BLOCKS, output_hidden_states=True).hidden_states
    assert len(found) == model.config.num_hidden_layers
    assert torch.equal(found[0], reported[1])
    if family == "bert_sequence":
        assert torch.equal(found[-1], reported[-1])
    with torch.no_grad():
        model(input_ids=BLOCKS)
    assert len(found) == model.config.num_hidden_layers, "nothing is kept outside"


def test_the_loss_is_relative_and_sees_no_padding() -> None:
    student, teacher = [torch.randn(2, 3, 4) for _ in range(2)], [torch.randn(2, 3, 4) for _ in range(2)]
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        seen = [(0, 0), (0, 1), (1, 0)]
        expected += sum(float((s[i] - t[i]).square().sum()) for i in seen) / sum(
            float(t[i].square().sum()) for i in seen
        )
    assert float(states_loss(student, teacher, mask)) == pytest.approx(expected / 2, rel=1e-5)
    plain = sum(float((s - t).square().sum() / t.square().sum()) for s, t in zip(student, teacher, strict=True)) / 2
    assert float(states_loss(student, teacher)) == pytest.approx(plain, rel=1e-5)
    assert float(states_loss(teacher, teacher)) == 0.0
    assert float(states_loss(student, [torch.zeros_like(t) for t in teacher])) > 0.0


def test_training_brings_the_states_closer() -> None:
    """Much closer than the logits alone bring them."""
    teacher, ends = tiny.ann("gpt2"), []
    for weight in (0.0, 10.0):
        student = without_dropout(tiny.qcfs_model("gpt2", "linear"))
        before = distance(student, teacher)
        options = Stage1Options(steps=30, batch_size=4, lr=2e-3, scale_lr=2e-3, distill=1.0, distill_states=weight)
        fine_tune(student, Blocks(BLOCKS), options, teacher)
        ends.append(distance(student, teacher))
    assert ends[1] < 0.6 * before
    assert ends[1] < 0.75 * ends[0]


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def distance(student: PreTrainedModel, teacher: PreTrainedModel) -> float:
    with torch.no_grad(), block_outputs(student) as mine, block_outputs(teacher) as wanted:
        student.eval()(input_ids=BLOCKS)
        teacher.eval()(input_ids=BLOCKS)
    return float(states_loss(mine, wanted))


def test_the_loss_is_the_sum_of_its_parts(monkeypatch) -> None:
    teacher, student = tiny.ann("gpt2"), without_dropout(tiny.qcfs_model("gpt2", "linear"))
    seen = []
    compute = Stage1Trainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        loss = compute(self, model, inputs, *args, **kwargs)
        with torch.no_grad(), block_outputs(model) as mine, block_outputs(teacher) as wanted:
            given, target = model(**inputs), teacher(input_ids=inputs["input_ids"]).logits
        expected = 0.75 * given.loss + 0.25 * logits_loss(given.logits, target) + 3 * states_loss(mine, wanted)
        seen.append((float(loss.detach()), float(expected)))
        return loss

    monkeypatch.setattr(Stage1Trainer, "compute_loss", watched)
    fine_tune(student, Blocks(BLOCKS), Stage1Options(steps=2, batch_size=4, distill=0.25, distill_states=3.0), teacher)
    assert len(seen) == 2
    for given, expected in seen:
        assert given == pytest.approx(expected, rel=1e-4)
