"""The stages of a conversion: control, QCFS model, neurons for each time. Each is computed once and kept on disk.

Every stage starts from what the stage before left on disk, so an interrupted run ends with the same result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from fas import world
from fas.calibration import CalibrationOptions, LayerReport, calibrate
from fas.config import SpikingConfig
from fas.conversion import convert, prepare
from fas.losses import better
from fas.pipeline.masked import begin_with_text
from fas.pipeline.options import ConvertOptions
from fas.pipeline.run import Run, adapters_of, batches_on
from fas.pipeline.workspace import Workspace
from fas.report.results import Row
from fas.runtime.control import sites_of
from fas.runtime.replay import number_of_layers
from fas.tasks.examples import Evaluation, Examples
from fas.tasks.glue import LANGUAGE_MODELING
from fas.training import BlockOptions, Stage1Options, fine_tune, train_blocks

SMALL = 20_000_000
"""Parameters up to which models stand, and need, larger steps (docs/log.md)."""
LANGUAGE_BATCH = 8
EPOCHS, LABELLED_BATCH, LABELLED_LR = 3, 32, 5e-5
"""Of labelled texts, as BERT is usually fine-tuned on GLUE (Devlin et al. 2019)."""
LORA_LR = 2e-4
"""Of adapters, as for GPT-2 (Hu et al. 2021): they start at nothing and stand larger steps than weights."""
BLOCK_LR = 2e-4
"""Of a block, whose target is at hand."""


def train_control(run: Run, ann: PreTrainedModel) -> dict[str, Any]:
    """Fine-tune the ANN as Stage 1 does, without sites and with the task loss only; keep the better of it and the ANN."""
    workspace, options, training = run.workspace, run.options, run.source.training
    if workspace.has("control-decision"):
        return workspace.read_json("control-decision")
    held_out = run.source.held_out.some(training.HELD_OUT)
    before = held_out.evaluate(ann, run.at_once, run.progress, "ANN on held-out training data")
    decision: dict[str, Any] = {"chosen": "ann", "ann_held_out_loss": before.loss, **_held_out("ann", before)}
    best = ann
    if trains_whole(options):
        tuned = run.source.fresh()
        begin_with_text(run, tuned, spiking=False)
        settings = stage1_options(options, ann.num_parameters(), len(training))
        fine_tune(tuned, training, settings, None, run.progress, "control: fine-tuning the ANN")
        after = held_out.evaluate(tuned, run.at_once, run.progress, "fine-tuned ANN on held-out training data")
        decision |= {"fine_tuned_held_out_loss": after.loss, **_held_out("fine_tuned", after)}
        if better(after.badness, before.badness) or run.source.new_head:
            best, decision["chosen"] = tuned, "fine-tuned"
    run.progress.note(f"control = {decision['chosen']} (better on held-out training data)")
    workspace.store("control", best.save_pretrained)
    return workspace.store_json("control-decision", decision)


def _held_out(name: str, found: Evaluation) -> dict[str, float]:
    return {f"{name}_held_out_{found.metric}": found.value} if found.metrics else {}


def adopt_control(workspace: Workspace, finished: Path) -> None:
    """Take the control of the conversion at ``finished``, where it was trained as this one's would be."""
    if workspace.has("control-decision"):
        return
    decision = json.loads((finished / "results.json").read_text())["extra"]["control"]
    workspace.store("control", lambda folder: shutil.copytree(finished / "control", folder, dirs_exist_ok=True))
    workspace.store_json("control-decision", decision)


def train_qcfs(run: Run, ann: PreTrainedModel, decision: dict[str, Any]) -> None:
    """Stage 1: QCFS units with fitted scales, then fine-tuning with the ANN as teacher, or the control where the ANN has yet to
    learn the task.

    Where the task loss on this data made the control worse than the ANN, it would do the same here: distil only.
    """
    if run.workspace.has("qcfs"):
        return
    options, source = run.options, run.source
    set_seed(options.seed)
    model = source.fresh()
    if options.stage1 == "blocks":
        train_by_blocks(run, model, ann)
    else:
        prepare(model, options.configurations()[0], run.calibration_batches(run.at_once), progress=run.progress)
    begin_with_text(run, model, spiking=True)
    if trains_whole(options):
        settings = stage1_options(options, ann.num_parameters(), len(run.source.training))
        if options.distill is None:
            settings = replace(settings, distill=0.5 if decision["chosen"] == "fine-tuned" else 1.0)
        teacher, name = (run.load("control"), "control") if source.new_head else (ann, "ANN")
        run.progress.note(f"Stage 1: {settings.distill:g} of the loss is distance to the {name}, the rest the task's")
        fine_tune(model, source.training, settings, teacher, run.progress, "Stage 1: fine-tuning the QCFS model")
    run.workspace.store("qcfs", model.save_pretrained)
    shutil.rmtree(run.workspace.path(BLOCKS), ignore_errors=True)


BLOCKS = "qcfs-blocks"
"""Where finished blocks and hidden states lie until the QCFS model is whole."""


def train_by_blocks(run: Run, model: PreTrainedModel, ann: PreTrainedModel) -> None:
    """Stage 1 of the original ``model``, a block at a time; what is kept of it stays until the QCFS model is stored."""
    options, training = run.options, run.source.training
    settings = block_options(options, ann.num_parameters(), len(training))
    batches = batches_on(run.device, block_batches(training, options, settings))
    train_blocks(model, ann, options.configurations()[0], batches, settings, run.progress, run.workspace.path(BLOCKS))


def block_batches(training: Examples, options: ConvertOptions, settings: BlockOptions) -> list[dict[str, Tensor]]:
    """What blocks are trained on: from all over, no more than the steps take and hidden states are kept of."""
    size = batch_size(options)
    taken = max(options.calibration_sequences or training.CALIBRATION, settings.steps * size)
    return training.some(min(options.stage1_sequences, taken)).unpadded(size)


def trains_whole(options: ConvertOptions) -> bool:
    """Whether the whole model is trained at once, and so is the control."""
    return options.stage1 in ("full", "lora") or options.stage1_finetune_steps > 0


def block_options(options: ConvertOptions, parameters: int, examples: int) -> BlockOptions:
    """How each block of a model of so many ``parameters`` is trained on so many ``examples``."""
    steps = options.stage1_steps or usual_steps(options, parameters, examples)
    lr = options.lr if options.lr is not None else BLOCK_LR
    scale_lr = options.scale_lr if options.scale_lr is not None else 10 * lr
    return BlockOptions(steps if options.stage1 == "blocks" else 0, lr, scale_lr, seed=options.seed)


def usual_steps(options: ConvertOptions, parameters: int, examples: int) -> int:
    """Steps of Stage 1 where ``options`` leave them open: several epochs of labelled texts, else by the model's size."""
    if options.task != LANGUAGE_MODELING:
        return -(-EPOCHS * examples // batch_size(options))
    return 600 if parameters < SMALL else 1000


def stage1_options(options: ConvertOptions, parameters: int, examples: int) -> Stage1Options:
    """How Stage 1 trains a model of so many ``parameters`` on so many ``examples``, where ``options`` leave it open."""
    labelled, adapters = options.task != LANGUAGE_MODELING, adapters_of(options)
    small = parameters < SMALL
    usual = LORA_LR if adapters else LABELLED_LR if labelled else 2e-5
    lr = options.lr if options.lr is not None else (2e-4 if small else usual)
    return Stage1Options(
        steps=options.stage1_finetune_steps or options.stage1_steps or usual_steps(options, parameters, examples),
        batch_size=batch_size(options),
        lr=lr,
        scale_lr=options.scale_lr if options.scale_lr is not None else 10 * lr,
        distill=0.5 if options.distill is None else options.distill,
        distill_states=options.distill_states,
        spikes_per_neuron=options.spikes_per_neuron,
        lora=adapters,
        fsdp=options.fsdp,
        seed=options.seed,
    )


def batch_size(options: ConvertOptions) -> int:
    """Examples a step of Stage 1, of all processes together."""
    return options.batch_size or (LANGUAGE_BATCH if options.task == LANGUAGE_MODELING else LABELLED_BATCH)


def stage_of(target: SpikingConfig) -> str:
    """Name of the stage that holds ``target``'s neurons."""
    return f"neurons-{target.coding}-{target.timesteps}"


def calibrate_for(run: Run, target: SpikingConfig) -> None:
    """Calibrate the neurons for one coding and time; only their parameters are stored."""
    stage = stage_of(target)
    if run.workspace.has(stage):
        return
    settings = CalibrationOptions.for_depth(
        number_of_layers(run.load("qcfs")),
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
    world.once(lambda: shutil.rmtree(layers, ignore_errors=True))


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
