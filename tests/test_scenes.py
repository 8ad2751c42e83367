"""What the demonstration with vision shows: answers that are generated, spikes that are counted, a page that holds them."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from shapes import data, llava

import fas
from fas import SpikingConfig
from fas.accounting.raster import by_token
from fas.pipeline.demo_vision import SIDE, patches, scene_of, tower_sites
from fas.pipeline.load import load_seeing
from fas.report.html import render
from fas.report.plots import spikes_by_layer, towers
from fas.report.results import Results, Row
from fas.report.scenes import scenes_as_text, shown
from fas.runtime.control import clock_of
from fas.runtime.spikes import counting
from fas.tasks.builtin import vision_path
from fas.tasks.vision_language import asked
from fas.tasks.visual import evaluation_seen


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any, list[Any]]:
    """ANN, SNN (T = 4), processor, and questions about one image."""
    place = tmp_path_factory.mktemp("scene")
    folder = data(place / "shapes")
    model = str(llava(folder, place / "llava"))
    rows = evaluation_seen("vqa", str(folder))[:2]
    (ann, processor), (snn, _) = load_seeing(model), load_seeing(model)
    inputs = asked(processor, rows[0].image, rows[0].question, snn.config)
    snn = fas.convert(fas.prepare(snn, SpikingConfig(levels=8, timesteps=4), [inputs]))
    return ann, snn, processor, rows


def test_spikes_by_token_are_those_that_are_counted(made: tuple[Any, Any, Any, list[Any]]) -> None:
    _, snn, processor, rows = made
    inputs = asked(processor, rows[0].image, rows[0].question, snn.config)
    sites = tower_sites(snn)
    assert [site.rsplit(".", 1)[-1] for site in sites] == ["ffn_hidden"] * len(sites)
    assert all("vision" in site for site in sites)
    found = by_token(snn, inputs, sites)
    with torch.no_grad(), counting(snn) as count:
        snn(**inputs)
    for site in sites:
        assert found[site].shape == (4, 17)  # 4 × 4 patches and the class token
        assert found[site].sum(1).tolist() == count.sites[site].by_timestep.tolist()
        assert torch.equal(patches(found[site])[:, 1, 2], found[site][:, 1 + 4 + 2])
    assert clock_of(snn).probe is None


def test_a_scene_is_what_the_models_say_and_its_page_holds_it(made: tuple[Any, Any, Any, list[Any]]) -> None:
    ann, snn, processor, rows = made
    sites = tower_sites(snn)
    scene = scene_of(rows, ann, snn, processor, sites)
    picture = Image.open(io.BytesIO(base64.b64decode(scene["png"])))
    assert picture.size == (16, 16)
    with torch.no_grad():
        inputs = asked(processor, rows[1].image, rows[1].question, ann.config)
        ids = ann.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert scene["questions"][1]["ann"] == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    results = Results("m", "d", 0, [Row("ann", metric="exact_match", value=0.5, metrics={"exact_match": 0.5})])
    results.extra["scenes"] = [json.loads(json.dumps(scene))]  # as a file keeps it
    page = render(results)
    assert page.count("data:image/png;base64," + scene["png"]) == 1
    assert page.count("t = 4") == 1
    assert "vision-language model" in page
    assert "exact match" in page
    assert "base64" not in "".join(page.split(scene["png"])[1:]).split("<dl>")[1]  # pictures are no provenance
    text = scenes_as_text(results)
    same = sum(one["ann"] == one["snn"] for one in scene["questions"])
    assert f"agree on {same} of 2 questions about 1 test pictures" in text
    assert [one.differ for one in shown(results)[0].questions] == [
        one["ann"] != one["snn"] for one in scene["questions"]
    ]
    assert "What they see" not in render(Results("m", "d", 0, results.rows))


def test_two_towers_are_two_lines() -> None:
    names = ("a.vision_tower.layers.0.ffn_hidden", "a.language_model.layers.0.ffn_hidden", "a.projector.linear_1")
    svg = spikes_by_layer(Row("snn", by_site=dict(zip(names, (0.5, 1.5, 1.0), strict=True))))
    assert svg is not None
    assert all(label in svg for label in ("vision tower, ffn hidden", "language model, ffn hidden", "linear 1"))
    assert towers({"h"}) == {"h": ""}


def test_the_embedded_model_knows_the_shapes(tmp_path: Path) -> None:
    from fas.tasks.pictures import Pictures
    from fas.tasks.shapes import write_shapes
    from fas.tasks.vision_language import ImageTexts

    weights = vision_path() / "model.safetensors"
    assert weights.stat().st_size < 4_000_000
    model, processor = load_seeing("builtin-vision")
    seen = evaluation_seen("vqa", str(write_shapes(tmp_path, 1, 25, seed=3, side=SIDE)))
    assert ImageTexts(seen, Pictures(processor)).evaluate(model, 32).value > 0.93


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_vision_demo_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from fas.cli import main; raise SystemExit(main())", "demo", "--vision"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=True)
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {(r["name"], r.get("timesteps"), r.get("schedule")): r["value"] for r in results["rows"]}
    assert rows["snn", 8, "synchronous"] > rows["control", None, None] - 0.02
    assert "ANN and SNN agree on" in done.stdout
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64") >= len(results["extra"]["scenes"]) == 6
