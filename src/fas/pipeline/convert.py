"""``fas convert``: both stages from a model and a text to a folder, resumable after every stage."""

from __future__ import annotations

import hashlib
import resource
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fas.models import planned
from fas.pipeline.load import block_length, load_ann
from fas.pipeline.measure import EVALUATION_BATCH, dense_row, layerwise_target, qcfs_row, spiking_row
from fas.pipeline.options import ConvertOptions
from fas.pipeline.stages import Run, adopt_control, calibrate_for, spiking_model, stage_of, train_control, train_qcfs
from fas.pipeline.workspace import Workspace
from fas.progress import Progress, Silent
from fas.report.results import Results, Row, versions
from fas.tasks.language_modeling import encode_blocks, spread
from fas.tasks.text import load_text


def run_conversion(
    options: ConvertOptions, progress: Progress | None = None, control_of: Path | None = None
) -> Results:
    """Convert as ``options`` say and return the measured rows; the folder appears whole at ``options.out``.

    ``control_of``: a finished conversion of the same model, data and steps, whose control is this one's too. Raises
    `FasError` kinds for bad input before anything is computed, and keeps finished stages if it is interrupted.
    """
    progress, start = progress or Silent(), time.time()
    ann, tokenizer = load_ann(options.model, options.device)
    planned(ann, options.configurations()[0])  # an unsupported model is refused before anything is trained
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
    if control_of is not None:
        adopt_control(workspace, control_of)
    run = Run(options, workspace, progress, tokenizer, blocks[0], blocks[1], evaluation, ann.device)
    decision = train_control(run, ann)
    train_qcfs(run, ann, decision)
    del ann
    for target in options.configurations() if options.stage2 else ():
        calibrate_for(run, target)
    rows = [*_dense_rows(run, decision), *_spiking_rows(run)]
    results = Results(options.model, options.data, options.seed, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    results.extra = {"control": decision, "seconds": round(time.time() - start, 1), "peak_memory_gib": round(peak, 2)}
    results.extra["options"] = {**asdict(options), "out": str(options.out)}
    results.extra["evaluation"] = {
        "data": options.data, "eval_data": options.eval_data, "length": length, "sequences": len(evaluation),
    }  # fmt: skip
    if options.stage2:  # relative error of each layer's readout: uncalibrated, after coarse, after fine
        results.extra["layer_errors"] = {
            t.neuron_key: workspace.read_json(stage_of(t)) for t in options.configurations()
        }
    if resumed:
        results.extra["seconds_of"] = "the last leg of an interrupted run"
    workspace.finish(lambda folder: _assemble(run, results, folder))
    return results


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
    model = spiking_model(run, calibrated=True)
    rows = [_kept(run, "row-qcfs", lambda: qcfs_row(model, run.evaluation, EVALUATION_BATCH, run.progress))]
    plan = [(model, layerwise_target(options.configurations()[0]), "row-layerwise")]
    plan += [(model, target, f"row-{target.coding}-{target.timesteps}") for target in options.configurations()]
    if options.before_stage2 and options.stage2:
        plain = spiking_model(run, calibrated=False)
        plan += [
            (plain, target, f"row-{target.coding}-{target.timesteps}-before") for target in options.configurations()
        ]
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
    spiking_model(run, calibrated=True).save_pretrained(folder)
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
