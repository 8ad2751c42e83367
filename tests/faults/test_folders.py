"""Damaged and edited folders give the same result or one clear line; the generator is `folder_cases`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers.utils import logging

sys.path.append(str(Path(__file__).parent))
import folder_cases

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "faults.json"


@pytest.fixture(autouse=True)
def silent() -> None:
    logging.set_verbosity_error()


def test_some_mutants_are_the_same_or_refused(tmp_path: Path) -> None:
    counts, wrong = folder_cases.run(tmp_path, 40)
    assert not wrong
    assert counts["refused"] > 30


def test_a_difference_would_be_seen(tmp_path: Path) -> None:
    """Without its manifest an edited folder computes something else: the judge says so."""

    def edited(place: Path) -> None:
        config = json.loads((place / "config.json").read_text())
        config["quantization_config"].pop("digest")
        config["quantization_config"]["spiking"]["levels"] = 3
        (place / "config.json").write_text(json.dumps(config))
        (place / "fas_manifest.json").unlink()

    folder_cases.save(tmp_path / "base", "gpt2", "linear", "qcfs")
    expected = folder_cases.loaded_by_python(tmp_path / "base", "gpt2")
    mutant = folder_cases.Mutant("gpt2", "linear", "qcfs", ("edited", edited))
    assert "different" in folder_cases.judged(mutant, tmp_path / "base", expected, tmp_path / "m")[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a quarter of an hour on an idle machine
def test_all_mutants_are_the_same_or_refused(tmp_path: Path) -> None:
    counts, wrong = folder_cases.run(tmp_path)
    assert not wrong
    assert counts.total() >= 1000
    recorded = json.loads(RESULTS.read_text())["mutants"]  # what is committed is what this run finds
    assert (recorded["refused"], recorded["identical"]) == (counts["refused"], counts["identical"])
