"""What tests/test_scale.py runs in one process and, under torchrun, in two: ``together.py FOLDER`` writes what it found there.

``together.py fail ARGUMENTS…`` is ``fas ARGUMENTS…`` whose second process fails behind Stage 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import folders
import tiny
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, PreTrainedModel

import fas
from fas import world
from fas.calibration import CalibrationOptions, calibrate, driver, fine
from fas.errors import DataError
from fas.pipeline.measure import Stopping, spiking_row
from fas.progress import Silent
from fas.runtime.control import as_qcfs, clock_of
from fas.tasks.glue import text_task
from fas.tasks.language_modeling import Blocks
from fas.tasks.sliding import SlidingText
from fas.tasks.text_classification import LabelledExamples
from fas.training import Lora, Stage1Options, fine_tune
from fas.training.stage1 import Stage1Trainer

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
NO_DROPOUT_BERT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STAGE1: dict[str, dict[str, Any]] = {
    "ddp": {"spikes_per_neuron": 0.3, "distill_states": 0.5},
    "fsdp": {"fsdp": True, "distill_states": 0.5},
    "lora": {"lora": Lora(4, 8.0), "fsdp": True},
}
BATCHES = [
    {"input_ids": tiny.tokens(5, 9, 11)},
    {"input_ids": tiny.tokens(1, 9, 12)},
    {"input_ids": tiny.tokens(4, 9, 13)},
]
"""That two processes cannot cut into equal parts, or at all."""


def qcfs_model(family: str = "gpt2", **settings: Any) -> PreTrainedModel:
    ann = tiny.ann(family, **settings)
    config = fas.SpikingConfig(levels=8, timesteps=4)
    return fas.prepare(ann, config, [tiny.inputs_for(ann, 4, 9, seed=2)])


def stage1(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Losses of every step, kinds of parameters that were trained, and the weights afterwards."""
    found: dict[str, Any] = {"losses": [], "kinds": []}
    log = Stage1Trainer.log

    def watched(self: Any, values: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in values:
            found["losses"].append(values["loss"])
            found["kinds"] = sorted({type(p).__name__ for p in self.model.parameters() if p.requires_grad})
            parts = [p for p in self.model.parameters() if isinstance(p, DTensor)]
            found["held"] = sum(p.to_local().numel() for p in parts) / max(1, sum(p.numel() for p in parts))
        log(self, values, *args, **kwargs)

    model = qcfs_model(**NO_DROPOUT)
    options = Stage1Options(steps=3, batch_size=4, lr=1e-3, scale_lr=1e-2, warmup=0.0, **STAGE1[name])
    Stage1Trainer.log = watched  # type: ignore[method-assign]
    fine_tune(model, Blocks(tiny.tokens(24, 9, seed=5)), options, tiny.ann("gpt2", **NO_DROPOUT))
    Stage1Trainer.log = log  # type: ignore[method-assign]
    return found, dict(model.state_dict())


def labelled(folder: Path) -> LabelledExamples:
    """Texts of several lengths, so that batches are padded and put together by length."""
    folders.save_ann(folder)
    encoded = [
        {"input_ids": tiny.tokens(1, 3 + i % 5, i)[0].tolist(), "attention_mask": [1] * (3 + i % 5), "labels": i % 2}
        for i in range(26)
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return LabelledExamples(encoded, tokenizer, text_task("text-classification", (None, None, None)))


def classifier(folder: Path) -> dict[str, Any]:
    """A spike budget on padded batches for two epochs, and the evaluation."""
    losses: list[float] = []
    compute = Stage1Trainer.compute_loss

    def watched(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(world.rank())  # dropout on batches of other lengths, too, would drive the processes apart
        loss = compute(self, model, inputs, *args, **kwargs)
        losses.append(float(world.summed(loss.detach())) / world.size())
        return loss

    examples = labelled(folder / f"tokenizer-{world.rank()}")
    model = qcfs_model("bert_sequence", num_labels=2, **NO_DROPOUT_BERT)
    Stage1Trainer.compute_loss = watched  # type: ignore[method-assign]
    fine_tune(model, examples, Stage1Options(steps=12, batch_size=4, lr=1e-5, scale_lr=1e-4, spikes_per_neuron=0.5))
    Stage1Trainer.compute_loss = compute  # type: ignore[method-assign]
    untrained = qcfs_model("bert_sequence", num_labels=2, **NO_DROPOUT_BERT)
    measured = examples.evaluate(untrained, 1)
    return {"losses": losses, "loss": measured.loss, "metrics": measured.metrics}


def global_pass() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Losses of its steps, what was judged, and the neurons."""
    losses: list[float] = []
    unite = fine.united

    def watched(loss: Any, values: Any) -> Any:
        found = unite(loss, values)
        losses.append(float(found.detach()))
        return found

    model = fas.convert(qcfs_model(**NO_DROPOUT))
    model.set_timesteps(2, coding="rate")
    judged: list[float] = []
    descend = driver.descend

    def noted(*args: Any, **kwargs: Any) -> float:
        judged.append(descend(*args, **kwargs))
        return judged[0]

    fine.united, driver.descend = watched, noted
    calibrate(model, BATCHES, CalibrationOptions(global_steps=4, search_rows=64))
    fine.united, driver.descend = unite, descend
    neurons = {name: value for name, value in model.state_dict().items() if ".neurons." in name}
    return {"losses": losses, "judged": judged}, neurons


def evaluation() -> dict[str, Any]:
    """Loss, spikes of every site and how long sequences ran; once with fewer batches than processes."""
    model = fas.convert(qcfs_model(**NO_DROPOUT))
    blocks = Blocks(tiny.tokens(7, 9, seed=5))
    row = spiking_row(
        model, clock_of(model).config, blocks, 8, Silent(), Stopping(True, 0.15)
    )  # 2 sequences of 4 timesteps
    counted = blocks.evaluate_spiking(model, 8).spikes
    with as_qcfs(model):
        few = Blocks(tiny.tokens(1, 9)).evaluate(model, 8)
    spikes = {name: [c.by_timestep.tolist(), c.neurons] for name, c in counted.sites.items()}
    stops = [row.mean_timesteps, row.stopped_early]
    sliding = SlidingText(tiny.tokens(1, 100)[0], 16, 8, 90, 400, 3).evaluate(model, 2)
    return {
        "sliding": [sliding.metrics, sliding.tokens],
        "loss": row.loss,
        "few": few.loss,
        "spikes": spikes,
        "by_site": row.by_site,
        "stops": stops,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world.join("cpu")
    found: dict[str, Any] = {"classifier": classifier(folder), "evaluation": evaluation()}
    tensors: dict[str, torch.Tensor] = {}
    for name in STAGE1:
        found[name], weights = stage1(name)
        tensors |= {f"{name} {key}": value.clone() for key, value in weights.items()}
    found["global"], neurons = global_pass()
    tensors |= {f"global {key}": value.clone() for key, value in neurons.items()}
    save_file(tensors, folder / f"{world.rank()}.safetensors")
    (folder / f"{world.rank()}.json").write_text(json.dumps(found))
    world.leave()


def fail() -> None:
    """The second process cannot go on; the first waits for it."""
    from fas.cli import main as command
    from fas.pipeline import convert

    calibrate_for = convert.calibrate_for

    def failing(*args: Any) -> None:
        if world.rank() == 1:
            raise DataError("the second process has no data; give it some")
        calibrate_for(*args)

    convert.calibrate_for = failing
    sys.exit(command(sys.argv[2:]))


if __name__ == "__main__":
    fail() if sys.argv[1] == "fail" else main(Path(sys.argv[1]))
