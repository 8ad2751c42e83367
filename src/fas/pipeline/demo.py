"""``fas demo``: the embedded model through both stages, measured and made to write, in minutes on two cores."""

from __future__ import annotations

from pathlib import Path

from fas.locks import one_at_a_time
from fas.pipeline.convert import run_conversion
from fas.pipeline.demo_folder import begin_anew
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


@one_at_a_time(lambda out: out)
def run_demo(out: Path, seed: int = 0, progress: Progress | None = None) -> Results:
    """Convert the embedded model into ``out``/model and let ANN and SNN continue one prompt.

    An interrupted demonstration goes on where it stopped; a finished one starts anew.
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
