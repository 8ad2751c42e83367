"""``fas convert``: both stages from a model and a text to a folder, resumable after every stage.

Every stage starts from what the stage before left on disk, so an interrupted run ends with the same result.
"""

from __future__ import annotations

import hashlib
import json
import resource
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from fas.calibration import CalibrationOptions, calibrate
from fas.config import SpikingConfig
from fas.conversion import convert, prepare
from fas.models import find_placements, find_segments
from fas.pipeline.load import block_length, load_ann
from fas.pipeline.measure import EVALUATION_BATCH, dense_row, layerwise_target, qcfs_row, spiking_row
from fas.pipeline.options import ConvertOptions
from fas.pipeline.workspace import Workspace
from fas.progress import Progress, Silent
from fas.report.results import Results, Row, versions
from fas.runtime.control import sites_of
from fas.tasks.language_modeling import encode_blocks, evaluate, spread
from fas.tasks.text import load_text
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


def run_conversion(options: ConvertOptions, progress: Progress | None = None) -> Results:
    """Convert as ``options`` say and return the measured rows; the folder appears whole at ``options.out``.

    Raises `FasError` kinds for bad input before anything is computed, and keeps finished stages if it is interrupted.
    """
    progress, start = progress or Silent(), time.time()
    ann, tokenizer = load_ann(options.model, options.device)
    for segment in find_segments(ann):  # an unsupported model is refused before anything is trained
        find_placements(segment, options.coverage)
    text = load_text(options.data, options.eval_data)
    length = block_length(ann, options.length)
    blocks = [
        encode_blocks(tokenizer, documents, length, what)
        for documents, what in ((text.training, "training text"), (text.held_out, "held-out training text"))
    ]
    evaluation = spread(encode_blocks(tokenizer, text.evaluation, length, "evaluation text"), options.eval_sequences)
    workspace = Workspace(
        options.out,
        options.fingerprint(weights=_digest(ann), text=_text_digest(*blocks, evaluation), versions=_versions()),
    )
    if workspace.finished:
        workspace.clear()
        progress.note(f"{options.out} was converted with these arguments already; its results are shown")
        return Results.read(options.out / "results.json")
    resumed = workspace.open()
    run = Run(options, workspace, progress, tokenizer, blocks[0], blocks[1], evaluation, ann.device)
    decision = _control(run, ann)
    _qcfs(run, ann, decision)
    del ann
    for target in options.targets() if options.stage2 else ():
        _stage2(run, target)
    rows = [*_dense_rows(run, decision), *_spiking_rows(run)]
    results = Results(options.model, options.data, options.seed, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    results.extra = {"control": decision, "seconds": round(time.time() - start, 1), "peak_memory_gib": round(peak, 2)}
    results.extra["options"] = {**asdict(options), "out": str(options.out)}
    results.extra["evaluation"] = {
        "data": options.data, "eval_data": options.eval_data, "length": length, "sequences": len(evaluation),
    }  # fmt: skip
    if options.stage2:  # relative error of each layer's readout: uncalibrated, after coarse, after fine
        results.extra["layer_errors"] = {t.neuron_key: workspace.read_json(_stage_of(t)) for t in options.targets()}
    if resumed:
        results.extra["seconds_of"] = "the last leg of an interrupted run"
    workspace.finish(lambda folder: _assemble(run, results, folder))
    return results


def _control(run: Run, ann: PreTrainedModel) -> dict[str, Any]:
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


def _qcfs(run: Run, ann: PreTrainedModel, decision: dict[str, Any]) -> None:
    """Stage 1: QCFS units with fitted scales, then full-parameter fine-tuning with the ANN as teacher.

    Where the task loss on this text made the control worse than the ANN, it would do the same here: distil only.
    """
    if run.workspace.has("qcfs"):
        return
    options = run.options
    set_seed(options.seed)
    model, _ = load_ann(options.model, options.device)
    prepare(model, options.targets()[0], run.calibration_batches(size=16))
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
        seed=options.seed,
    )


def _stage_of(target: SpikingConfig) -> str:
    return f"neurons-{target.coding}-{target.timesteps}"


def _stage2(run: Run, target: SpikingConfig) -> None:
    """Calibrate the neurons for one coding and time; only their parameters are stored."""
    stage = _stage_of(target)
    if run.workspace.has(stage):
        return
    set_seed(run.options.seed)
    model = convert(run.load("qcfs"))
    model.set_timesteps(**target.model_dump())
    settings = CalibrationOptions(align_steps=run.options.align_steps, global_steps=run.options.global_steps)
    reports = calibrate(model, run.calibration_batches(), settings, run.progress)
    values = {
        name: p.detach().cpu() for name, p in model.state_dict().items() if f".neurons.{target.neuron_key}." in name
    }

    def write(folder: Path) -> None:
        save_file(values, folder / "neurons.safetensors")
        (folder / "value.json").write_text(json.dumps([vars(report) for report in reports]))

    run.workspace.store(stage, write)


def _spiking_model(run: Run, calibrated: bool) -> PreTrainedModel:
    """The SNN with the neurons of every finished calibration, in the asked dtype."""
    targets = run.options.targets()
    model = convert(run.load("qcfs"))
    if calibrated and run.options.stage2:
        values: dict[str, Tensor] = {}
        for target in targets:
            for site in sites_of(model).values():
                site.add_parameters(target.neuron_key)
            values |= load_file(run.workspace.path(_stage_of(target)) / "neurons.safetensors")
        unexpected = model.load_state_dict(values, strict=False).unexpected_keys
        assert not unexpected, unexpected
    model.set_timesteps(**targets[0].model_dump())
    return model.to(getattr(torch, run.options.dtype))


def _dense_rows(run: Run, decision: dict[str, Any]) -> list[Row]:
    dtype = getattr(torch, run.options.dtype)

    def measure(name: str, model: PreTrainedModel) -> Row:
        return dense_row(name, model.to(dtype), run.evaluation, EVALUATION_BATCH, run.progress)

    ann = _kept(run, "row-ann", lambda: measure("ann", load_ann(run.options.model, run.options.device)[0]))
    if decision["chosen"] == "ann":
        return [ann, replace(ann, name="control")]
    return [ann, _kept(run, "row-control", lambda: measure("control", run.load("control")))]


def _spiking_rows(run: Run) -> list[Row]:
    options = run.options
    model = _spiking_model(run, calibrated=True)
    rows = [_kept(run, "row-qcfs", lambda: qcfs_row(model, run.evaluation, EVALUATION_BATCH, run.progress))]
    plan = [(model, layerwise_target(options.targets()[0]), "row-layerwise")]
    plan += [(model, target, f"row-{target.coding}-{target.timesteps}") for target in options.targets()]
    if options.before_stage2 and options.stage2:
        plain = _spiking_model(run, calibrated=False)
        plan += [(plain, target, f"row-{target.coding}-{target.timesteps}-before") for target in options.targets()]
    for spiking, target, stage in plan:
        rows.append(
            _kept(
                run,
                stage,
                lambda s=spiking, t=target: spiking_row(s, t, run.evaluation, EVALUATION_BATCH, run.progress),
            )
        )
    return rows


def _kept(run: Run, stage: str, measure: Any) -> Row:
    """A row measured once per run."""
    if not run.workspace.has(stage):
        run.workspace.store_json(stage, vars(measure()))
    return Row(**run.workspace.read_json(stage))


def _assemble(run: Run, results: Results, folder: Path) -> None:
    _spiking_model(run, calibrated=True).save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)
    control = run.load("control").to(getattr(torch, run.options.dtype))
    control.save_pretrained(folder / "control")
    run.tokenizer.save_pretrained(folder / "control")
    results.write(folder / "results.json")


def _digest(model: PreTrainedModel) -> str:
    digest = hashlib.sha256(str(model.config.to_json_string()).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().flatten()[:: max(1, value.numel() // 4096)].cpu().numpy().tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    """A resumed run must not mix stages of two versions."""
    return {name: version for name, version in versions().items() if name != "platform"}


def _text_digest(*blocks: Tensor) -> str:
    return hashlib.sha256(b"".join(block.numpy().tobytes() for block in blocks)).hexdigest()
