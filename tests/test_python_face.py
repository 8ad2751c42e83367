"""FAS in an editor and a notebook: names and types that tools see, reports that people read, bars that move."""

from __future__ import annotations

import io
import os
import pydoc
import subprocess
import sys
from contextlib import redirect_stderr
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny

import fas
from fas.progress import Bars, Silent, progress_from
from fas.sections import Reports

ROOT = Path(__file__).parents[1]
SNIPPET = """
import torch
from transformers import LlamaForCausalLM
import fas

def sound(model: LlamaForCausalLM) -> int:
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    config = fas.SpikingConfig(coverage="ffn", levels=8, timesteps=4, parts=("text",))
    steps: tuple[int, ...] | None = config.steps
    fas.prepare(model, {"levels": 4}, batch, progress=True)
    spiking: LlamaForCausalLM = fas.convert(fas.prepare(model, config, [batch]))
    fas.calibrate(spiking, [batch], {"fit_steps": 0}, progress=True)
    fas.calibrate(spiking, [batch], fas.CalibrationOptions(fit_steps=0))
    with fas.accelerated(spiking) as fast, fas.memory_limit(fast, "1GiB") as limited:
        same: LlamaForCausalLM = limited
    found: fas.Ledger = fas.ledger(spiking, batch)
    return len(found.headline) + len(fas.diagnose(spiking, batch).layers)

fas.SpikingConfig(coverge="ffn")  # wrong
fas.SpikingConfig(coverage="ffm")  # wrong
fas.calibrat  # wrong
fas.CalibrationOptions(fit_stpes=3)  # wrong
fas.BlockOptions(steps="many")  # wrong
fas.SpikingConfig().levels = 3  # wrong
fas.prepare(3, fas.SpikingConfig(), [])  # wrong
"""


def test_type_checkers_see_names_fields_and_kinds(tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(SNIPPET)
    (tmp_path / "pyrefly.toml").write_text("")
    command = (
        sys.executable, "-m", "pyrefly", "check", "--output-format", "min-text", "--python-interpreter-path", sys.executable,
        "--search-path", ROOT / "src", "snippet.py",
    )  # fmt: skip
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300).stdout
    wrong = {number for number, line in enumerate(SNIPPET.split("\n"), 1) if "# wrong" in line}
    found = {int(line.split("snippet.py:")[1].split(":")[0]) for line in told.splitlines() if "snippet.py:" in line}
    assert found == wrong, told
    assert (ROOT / "src/fas/py.typed").exists()


def test_completion_offers_the_public_names_and_loads_nothing() -> None:
    assert set(fas.__all__) <= set(dir(fas))
    assert not {"Any", "import_module", "plugin", "register"} & set(dir(fas))
    code = "import sys, fas; dir(fas); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    here = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=here, timeout=120).returncode == 0


@pytest.mark.parametrize("name", fas.__all__)
def test_help_says_what_a_name_is_for(name: str) -> None:
    value = getattr(fas, name)
    text = pydoc.plain(pydoc.render_doc(value))
    assert len(value.__doc__) > 40
    assert value.__doc__.split("\n")[0] in text
    assert "DESIGN" not in text
    if name.islower():
        assert "Raises" in text


class Cells(HTMLParser):
    """Checks that tags close, and gathers what cells hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.cells.append(data)


def reports() -> dict[str, Any]:
    model, batch = tiny.snn("llama", timesteps=2), {"input_ids": tiny.tokens(2, 6)}
    layers = fas.calibrate(model, batch, {"fit_steps": 0})
    return {
        "calibrate": layers,
        "diagnose": fas.diagnose(model, batch),
        "ledger": fas.ledger(model, batch, decode=True, neurobench=True),
        "of an ANN": fas.ledger(tiny.ann("llama"), batch),
    }


def test_reports_are_tables_for_people_notebooks_and_pandas() -> None:
    import pandas

    for name, report in reports().items():
        text, html, short = str(report), report._repr_html_(), repr(report)
        assert max(map(len, text.splitlines())) < 260, name
        cells = Cells(html)
        assert not cells.open, name
        assert len(cells.cells) > 5, name
        assert all(cell in text for cell in cells.cells if cell), name
        assert len(short) < 2000, name
        assert len(pandas.DataFrame(report.rows)) == (len(report.rows) if name != "of an ANN" else 0)


def test_rows_hold_every_site_and_layer() -> None:
    found = reports()
    sites = [row["name"] for row in found["ledger"].rows]
    assert len(sites) == 8
    assert {row["name"] for row in found["diagnose"].rows} == set(sites)
    assert [row["name"] for row in found["calibrate"].rows] == ["model.0", "model.1"]
    assert {row["layer"] for row in found["diagnose"].rows} == {"model.0", "model.1"}
    assert str(Reports()) == "No layer was worked on by itself."


def test_progress_is_a_bar_that_counts_to_the_end() -> None:
    shown = io.StringIO()
    with redirect_stderr(shown):
        model, batch = tiny.ann("llama"), {"input_ids": tiny.tokens(2, 6)}
        fas.convert(fas.prepare(model, {"levels": 4, "timesteps": 2}, batch, progress=True))
        fas.calibrate(model, batch, {"fit_steps": 0}, progress=True)
        fas.diagnose(model, batch, progress=True)
    lines = shown.getvalue().replace("\r", "\n").splitlines()
    for title in ("Sampling the inputs", "Fitting the scales", "Stage 2, sigma-delta", "Diagnosis"):
        last = [line for line in lines if line.startswith(title)][-1]
        assert "100%" in last, last


def test_progress_is_a_bar_an_own_one_or_silent() -> None:
    assert isinstance(progress_from(True), Bars)
    assert isinstance(progress_from(None), Silent)
    assert isinstance(progress_from(False), Silent)
    own = Silent()
    assert progress_from(own) is own
