"""``fas convert``: both stages from a model and a text to a folder, resumable after every stage."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.conversion.card import write_card
from fas.conversion.manifest import write_manifest
from fas.locks import one_at_a_time
from fas.pipeline.advice import more_moves
from fas.pipeline.default_time import best_measured, named
from fas.pipeline.measure import dense_row, layerwise_target, qcfs_row, spiking_row
from fas.pipeline.options import ConvertOptions
from fas.pipeline.outliers import outliers_of, prefixed_ann, with_outliers_treated
from fas.pipeline.prepared import prepared
from fas.pipeline.run import Run
from fas.pipeline.stages import (
    adopt_control,
    calibrate_for,
    kept_row,
    spiking_model,
    stage_of,
    train_control,
    train_qcfs,
)
from fas.pipeline.workspace import Workspace
from fas.progress import Progress, Silent
from fas.report.card import measured_lines
from fas.report.results import Results, Row


@one_at_a_time(lambda options: options.out)
def run_conversion(
    options: ConvertOptions, progress: Progress | None = None, control_of: Path | None = None
) -> Results:
    """Convert as ``options`` say and return the measured rows; the folder appears whole at ``options.out``.

    ``control_of``: a finished conversion of the same model, data and steps, whose control is this one's too. Raises
    `FasError` kinds for bad input before anything is computed, and keeps finished stages if it is interrupted.
    """
    progress, start = progress or Silent(), time.time()
    ready = prepared(options, progress)
    workspace = Workspace(options.out, ready.fingerprint(options))
    if workspace.finished:
        workspace.clear()
        progress.note(f"{options.out} was converted with these arguments already; its results are shown")
        return Results.read(options.out / "results.json")
    resumed = workspace.open()
    if control_of is not None:
        adopt_control(workspace, control_of)
    run = ready.run(options, workspace, progress)
    run = with_outliers_treated(run, ready.ann)
    options = run.options
    decision = train_control(run, ready.ann)
    train_qcfs(run, ready.ann, decision)
    ready.release()
    for target in options.configurations() if options.stage2 else ():
        calibrate_for(run, target)
    rows = [*_dense_rows(run, decision), *_spiking_rows(run)]
    results = Results(options.model, options.data, options.seed, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    results.extra = {"control": decision, "seconds": round(time.time() - start, 1), "peak_memory_gib": round(peak, 2)}
    results.extra["options"] = {**asdict(options), "out": str(options.out)}
    results.extra["data"] = run.source.reading.about()
    results.extra["evaluation"] = {
        "data": options.data, "eval_data": options.eval_data, **run.evaluation.about(),
    }  # fmt: skip
    if (found := outliers_of(run)) is not None:
        results.extra["massive_activations"] = found
    if options.stage2:  # relative error of each layer's readout: uncalibrated, by site, by layer
        results.extra["layer_errors"] = {
            t.neuron_key: workspace.read_json(stage_of(t)) for t in options.configurations()
        }
    if resumed:
        results.extra["seconds_of"] = "the last leg of an interrupted run"
    default = best_measured(rows, options.configurations())
    results.extra["default_time"] = {"coding": default.coding, "timesteps": default.timesteps}
    workspace.finish(lambda folder: _assemble(run, results, default, folder))
    progress.note(
        f"{options.out} runs in {named(default)} where no other time is asked for: the best that was measured"
    )
    if (advice := more_moves(rows)) is not None:
        progress.note(advice)
    return results


def _dense_rows(run: Run, decision: dict[str, Any]) -> list[Row]:
    dtype = getattr(torch, run.options.dtype)

    def measure(name: str, model: PreTrainedModel) -> Row:
        return dense_row(name, model.to(dtype), run.evaluation, run.at_once, run.progress)

    if run.source.new_head:  # the ANN has not learnt the task
        return [kept_row(run.workspace, "row-control", lambda: measure("control", run.load("control")))]
    rows = [kept_row(run.workspace, "row-ann", lambda: measure("ann", run.source.fresh()))]
    if run.options.prefix:
        rows.append(kept_row(run.workspace, "row-ann-prefix", lambda: measure("ann+prefix", prefixed_ann(run))))
    if decision["chosen"] == "ann":
        return [*rows, replace(rows[0], name="control")]
    return [*rows, kept_row(run.workspace, "row-control", lambda: measure("control", run.load("control")))]


def _spiking_rows(run: Run) -> list[Row]:
    options = run.options
    model = spiking_model(run, calibrated=True)
    rows = [kept_row(run.workspace, "row-qcfs", lambda: qcfs_row(model, run.evaluation, run.at_once, run.progress))]
    plan = [(model, layerwise_target(options.configurations()[0]), "row-layerwise")]
    plan += [(model, target, f"row-{target.coding}-{target.timesteps}") for target in options.configurations()]
    if options.before_stage2 and options.stage2:
        plain = spiking_model(run, calibrated=False)
        plan += [
            (plain, target, f"row-{target.coding}-{target.timesteps}-before") for target in options.configurations()
        ]
    for spiking, target, stage in plan:
        rows.append(
            kept_row(
                run.workspace,
                stage,
                lambda s=spiking, t=target: spiking_row(s, t, run.evaluation, run.at_once, run.progress),
            )
        )
    return rows


def _assemble(run: Run, results: Results, default: SpikingConfig, folder: Path) -> None:
    model = spiking_model(run, calibrated=True)
    model.set_timesteps(**default.model_dump())
    model.save_pretrained(folder)
    run.source.tokenizer.save_pretrained(folder)
    control = run.load("control").to(getattr(torch, run.options.dtype))
    control.save_pretrained(folder / "control")
    run.source.tokenizer.save_pretrained(folder / "control")
    write_manifest(folder / "control")
    results.write(folder / "results.json")
    write_card(folder, run.options.model, measured_lines(results))
