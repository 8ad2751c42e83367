"""``fas demo --vision``: the embedded vision-language model on drawn shapes, converted, measured and asked."""

from __future__ import annotations

import base64
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from fas.accounting.parts import parts_of
from fas.accounting.raster import by_token
from fas.locks import one_at_a_time
from fas.pipeline.convert import run_conversion
from fas.pipeline.demo_folder import begin_anew
from fas.pipeline.generate import Decoding, continue_text
from fas.pipeline.load import load_seeing, load_spiking, need_pillow
from fas.pipeline.options import ConvertOptions
from fas.progress import Progress, Silent
from fas.report.results import Results
from fas.runtime.control import sites_of
from fas.tasks.glue import VQA
from fas.tasks.shapes import write_shapes
from fas.tasks.vision_language import asked
from fas.tasks.visual import Seen, evaluation_seen

MODEL, SIDE = "builtin-vision", 48
TRAINING, TEST = 1500, 60
SCENES = 6


def vision_demo_options(out: Path, data: Path, seed: int = 0) -> ConvertOptions:
    """What is converted: vision tower, projector and language model, coverage ``linear``, both codings, T = 4 and 8."""
    return ConvertOptions(
        model=MODEL, data=str(data), out=out, task=VQA, levels=8, codings=("sigma_delta", "rate"),
        timesteps=(8, 4), stage1_steps=120, batch_size=32, lr=2e-4, calibration_sequences=32, seed=seed,
    )  # fmt: skip


@one_at_a_time(lambda out: out)
def run_vision_demo(out: Path, seed: int = 0, progress: Progress | None = None) -> Results:
    """Draw pictures into ``out``/shapes, convert the model into ``out``/model, and let ANN and SNN answer questions.

    An interrupted demonstration goes on where it stopped; a finished one starts anew.
    """
    need_pillow()
    progress = progress or Silent()
    begin_anew(out)
    data = write_shapes(out / "shapes", TRAINING, TEST, seed + 1, SIDE)  # the model has seen the pictures of seed 0
    results = run_conversion(vision_demo_options(out / "model", data, seed), progress)
    ann, processor = load_seeing(MODEL)
    snn, _ = load_spiking(str(out / "model"), any_task=True)
    snn.set_timesteps(timesteps=8, coding="sigma_delta")
    sites = tower_sites(snn)
    by_image = [list(rows) for _, rows in groupby(evaluation_seen(VQA, str(data)), lambda row: row.image)][:SCENES]
    progress.start("asking both about pictures", SCENES)
    results.extra["scenes"] = []
    for rows in by_image:
        results.extra["scenes"].append(scene_of(rows, ann, snn, processor, sites))
        progress.advance()
    progress.done()
    return results


def scene_of(
    rows: list[Seen], ann: PreTrainedModel, snn: PreTrainedModel, processor: ProcessorMixin, sites: list[str]
) -> dict[str, Any]:
    """One picture with the questions of ``rows``, the answers of both models, and the spikes of ``sites`` by patch."""
    image, decoding = rows[0].image, Decoding(max_new_tokens=4)
    assert isinstance(image, Path), "shapes are drawn into files"
    questions = [
        {"question": row.question, "right": row.answer}
        | {
            name: continue_text(model, processor, row.question, decoding, image=image).text.strip()
            for name, model in (("ann", ann), ("snn", snn))
        }
        for row in rows
    ]
    found = by_token(snn, asked(processor, image, rows[0].question, snn.config), sites)
    return {
        "png": base64.b64encode(image.read_bytes()).decode(),
        "questions": questions,
        "spikes": {site: patches(spikes).tolist() for site, spikes in found.items()},
    }


def patches(spikes: torch.Tensor) -> torch.Tensor:
    """``[T, 1 + n²]`` (CLIP's class token in front) as ``[T, n, n]``."""
    side = round((spikes.shape[1] - 1) ** 0.5)
    return spikes[:, 1:].unflatten(1, (side, side))


def tower_sites(model: PreTrainedModel) -> list[str]:
    """The input of the FFN's second matrix in the first and the last layer of the vision tower that spike."""
    tower = [name for name, part in parts_of(model).items() if part == "vision"]
    found = [site for site in sites_of(model) if site.endswith("ffn_hidden") and site.startswith(tuple(tower))]
    return list(dict.fromkeys([found[0], found[-1]]))
