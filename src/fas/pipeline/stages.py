"""The stages of a conversion: control, QCFS model, neurons for each time. Each is computed once and kept on disk.

Every stage starts from what the stage before left on disk, so an interrupted run ends with the same result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from fas.calibration import CalibrationOptions, LayerReport, calibrate
from fas.config import SpikingConfig
from fas.conversion import convert, prepare
from fas.pipeline.load import load_ann
from fas.pipeline.measure import EVALUATION_BATCH
from fas.pipeline.options import ConvertOptions
from fas.pipeline.workspace import Workspace
from fas.progress import Progress
from fas.report.results import Row
from fas.runtime.control import sites_of
from fas.tasks.language_modeling import evaluate, spread
from fas.training import Stage1Options, fine_tune

HELD_OUT_BLOCKS = 256


@dataclass
class Run:
    """What all stages share."""

    options: ConvertOptions
    workspace: Workspace
    progress: Progress
    tokenizer: PreTrainedTokenizerBase
    training: Tensor
    held_out: Tensor
    evaluation: Tensor
    device: torch.device

    def calibration_batches(self, size: int = 4) -> list[dict[str, Tensor]]:
        """Evenly spaced training blocks, in batches small enough for T·B rows."""
        picked = spread(self.training, self.options.calibration_sequences)
        return [{"input_ids": batch.to(self.device)} for batch in picked.split(size)]

    def load(self, stage: str) -> PreTrainedModel:
        place = self.workspace.path(stage)
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).to(self.device).eval()


def train_control(run: Run, ann: PreTrainedModel) -> dict[str, Any]:
    """Fine-tune the ANN as Stage 1 does, without sites and with the task loss only; keep the better of it and the ANN."""
    workspace, options = run.workspace, run.options
    if workspace.has("control-decision"):
        return workspace.read_json("control-decision")
    held_out = spread(run.held_out, HELD_OUT_BLOCKS)
    ann_loss = evaluate(ann, held_out, EVALUATION_BATCH, run.progress, "ANN on held-out text").loss
    decision: dict[str, Any] = {"chosen": "ann", "ann_held_out_loss": ann_loss}
    best = ann
    if options.stage1 == "full":
        tuned, _ = load_ann(options.model, options.device)
        fine_tune(
            tuned, run.training, _stage1_options(options, ann), None, run.progress, "control: fine-tuning the ANN"
        )
        tuned_loss = evaluate(tuned, held_out, EVALUATION_BATCH, run.progress, "fine-tuned ANN on held-out text").loss
        decision["fine_tuned_held_out_loss"] = tuned_loss
        if tuned_loss < ann_loss:
            best, decision["chosen"] = tuned, "fine-tuned"
    run.progress.note(f"control = {decision['chosen']} (better on held-out text)")
    workspace.store("control", best.save_pretrained)
    return workspace.store_json("control-decision", decision)


def adopt_control(workspace: Workspace, finished: Path) -> None:
    """Take the control of the conversion at ``finished``, where it was trained as this one's would be."""
    if workspace.has("control-decision"):
        return
    decision = json.loads((finished / "results.json").read_text())["extra"]["control"]
    workspace.store("control", lambda folder: shutil.copytree(finished / "control", folder, dirs_exist_ok=True))
    workspace.store_json("control-decision", decision)


def train_qcfs(run: Run, ann: PreTrainedModel, decision: dict[str, Any]) -> None:
    """Stage 1: QCFS units with fitted scales, then full-parameter fine-tuning with the ANN as teacher.

    Where the task loss on this text made the control worse than the ANN, it would do the same here: distil only.
    """
    if run.workspace.has("qcfs"):
        return
    options = run.options
    set_seed(options.seed)
    model, _ = load_ann(options.model, options.device)
    prepare(model, options.configurations()[0], run.calibration_batches(size=16))
    if options.stage1 == "full":
        settings = _stage1_options(options, ann)
        if options.distill is None:
            settings = replace(settings, distill=0.5 if decision["chosen"] == "fine-tuned" else 1.0)
        run.progress.note(f"Stage 1: {settings.distill:g} of the loss is KL to the ANN, the rest the task's")
        fine_tune(model, run.training, settings, ann, run.progress, "Stage 1: fine-tuning the QCFS model")
    run.workspace.store("qcfs", model.save_pretrained)


def _stage1_options(options: ConvertOptions, ann: PreTrainedModel) -> Stage1Options:
    small = ann.num_parameters() < 20_000_000  # small models stand, and need, larger steps (docs/log.md)
    lr = options.lr if options.lr is not None else (2e-4 if small else 2e-5)
    return Stage1Options(
        steps=options.stage1_steps or (600 if small else 1000),
        batch_size=options.batch_size,
        lr=lr,
        scale_lr=options.scale_lr if options.scale_lr is not None else 10 * lr,
        distill=0.5 if options.distill is None else options.distill,
        spikes_per_neuron=options.spikes_per_neuron,
        seed=options.seed,
    )


def stage_of(target: SpikingConfig) -> str:
    """Name of the stage that holds ``target``'s neurons."""
    return f"neurons-{target.coding}-{target.timesteps}"


def calibrate_for(run: Run, target: SpikingConfig) -> None:
    """Calibrate the neurons for one coding and time; only their parameters are stored."""
    stage = stage_of(target)
    if run.workspace.has(stage):
        return
    settings = CalibrationOptions(
        fit_steps=run.options.fit_steps,
        absorb_bias=run.options.absorb_bias,
        align_steps=run.options.align_steps,
        global_steps=run.options.global_steps,
        spike_price=run.options.price_of_a_spike,
    )
    with spiking_for(run, target, settings, stage) as (model, reports):
        values = {
            name: p.detach().cpu() for name, p in model.state_dict().items() if f".neurons.{target.neuron_key}." in name
        }

        def write(folder: Path) -> None:
            save_file(values, folder / "neurons.safetensors")
            (folder / "value.json").write_text(json.dumps([vars(report) for report in reports]))

        run.workspace.store(stage, write)


@contextmanager
def spiking_for(
    run: Run, target: SpikingConfig, settings: CalibrationOptions | None, stage: str
) -> Iterator[tuple[PreTrainedModel, list[LayerReport]]]:
    """The SNN for ``target``, calibrated as ``settings`` say (None: not at all), and what Stage 2 reports.

    Finished layers are kept beside ``stage`` until the block, in which the caller stores what it is after, has ended.
    """
    set_seed(run.options.seed)
    model = convert(run.load("qcfs"))
    model.set_timesteps(**target.model_dump())
    layers = run.workspace.path(f"{stage}-layers")
    reports = []
    if settings is not None:
        reports = calibrate(model, run.calibration_batches(), settings, run.progress, layers)
    yield model, reports
    shutil.rmtree(layers, ignore_errors=True)


def kept_row(workspace: Workspace, stage: str, measure: Callable[[], Row]) -> Row:
    """A row measured once per run."""
    if not workspace.has(stage):
        workspace.store_json(stage, vars(measure()))
    return Row(**workspace.read_json(stage))


def spiking_model(run: Run, calibrated: bool) -> PreTrainedModel:
    """The SNN with the neurons of every finished calibration, in the asked dtype."""
    targets = run.options.configurations()
    model = convert(run.load("qcfs"))
    if calibrated and run.options.stage2:
        values: dict[str, Tensor] = {}
        for target in targets:
            for site in sites_of(model).values():
                if site.calibrates:
                    site.add_parameters(target.neuron_key)
            values |= load_file(run.workspace.path(stage_of(target)) / "neurons.safetensors")
        unexpected = model.load_state_dict(values, strict=False).unexpected_keys
        assert not unexpected, unexpected
    model.set_timesteps(**targets[0].model_dump())
    return model.to(getattr(torch, run.options.dtype))
