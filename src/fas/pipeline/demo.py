"""``fas demo``: the embedded model through both stages, measured and made to write, in minutes on two cores."""

from __future__ import annotations

import shutil
from pathlib import Path

from fas.errors import ConfigError
from fas.pipeline.convert import run_conversion
from fas.pipeline.evaluate import diagnoses
from fas.pipeline.generate import Decoding, continue_text
from fas.pipeline.load import load_ann, load_spiking
from fas.pipeline.options import ConvertOptions
from fas.pipeline.source import evaluation_of
from fas.progress import Progress, Silent
from fas.report.results import Results, Row
from fas.runtime.control import clock_of

DIAGNOSED = 8
"""Sequences on which is seen how the layers settle."""
FEW = {"coding": "sigma_delta", "timesteps": 4}
"""In what time the network writes and is looked at."""
PROMPT = "The with statement is used to"


def demo_options(out: Path, seed: int = 0) -> ConvertOptions:
    """What the demonstration converts: coverage ``linear``, both codings, T = 2, 4, 8."""
    return ConvertOptions(
        model="builtin",
        data="builtin",
        out=out,
        levels=8,
        codings=("sigma_delta", "rate"),
        timesteps=(4, 2, 8),
        stage1_steps=200,
        length=128,
        calibration_sequences=16,
        eval_sequences=128,
        seed=seed,
    )


def begin_anew(out: Path) -> None:
    """Remove the finished conversion of an earlier demonstration in ``out``.

    Raises `ConfigError` where other files lie there, among which results would be written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder to write into (--out)")
    names = {entry.name for entry in out.iterdir()} if out.exists() else set()
    if names and not names & {"model", "model.work", "shapes"}:
        raise ConfigError(f"{out} holds other files and no demonstration of FAS; give another folder (--out)")
    if (out / "model" / "run.json").exists():  # a finished conversion of ours; anything else is refused, not removed
        shutil.rmtree(out / "model")


def run_demo(out: Path, seed: int = 0, progress: Progress | None = None) -> Results:
    """Convert the embedded model into ``out``/model and let ANN and SNN continue one prompt.

    An interrupted demonstration goes on where it stopped; a finished one starts anew. Raises `ConfigError` for a folder with
    other files.
    """
    progress = progress or Silent()
    begin_anew(out)
    results = run_conversion(demo_options(out / "model", seed), progress)
    results.rows.sort(key=_place)
    progress.start("writing samples", 2)
    samples, decoding = {"prompt": PROMPT}, Decoding(max_new_tokens=48, sample=True, temperature=0.7, seed=seed)
    spiking = load_spiking(str(out / "model"))
    spiking[0].set_timesteps(**FEW)  # few timesteps are what is shown
    for label, (model, tokenizer) in (("ann", load_ann("builtin")), ("snn", spiking)):
        samples[label] = continue_text(model, tokenizer, PROMPT, decoding).text
        progress.advance()
    progress.done()
    results.extra["samples"] = [samples]
    model, tokenizer = spiking
    examples = evaluation_of(demo_options(out / "model", seed), model.config, tokenizer).some(DIAGNOSED)
    results.extra["diagnosis"] = diagnoses(model, [clock_of(model).config], examples, progress)
    return results


def _place(row: Row) -> tuple[int, str, int]:
    """ANN, control, QCFS model; then the SNN, layerwise first, by coding and T."""
    order = ("ann", "control", "qcfs", "snn").index(row.name)
    return order, row.coding or "", row.timesteps or 0
