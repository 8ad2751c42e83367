"""The demonstration as a user runs it: minutes, so only in ``make test-all``."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_demo_from_the_command_line(tmp_path):
    command = [
        sys.executable,
        "-c",
        "from fas.cli import main; raise SystemExit(main())",
        "demo",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {(r["name"], r.get("coding"), r.get("timesteps"), r.get("schedule")): r for r in results["rows"]}
    control, qcfs = rows["control", None, None, None], rows["qcfs", None, None, None]
    assert rows["snn", None, 8, "layerwise"]["perplexity"] == qcfs["perplexity"]
    decision = results["extra"]["control"]  # on held-out text, whatever the evaluation text says
    better = decision["fine_tuned_held_out_loss"] < decision["ann_held_out_loss"]
    assert decision["chosen"] == ("fine-tuned" if better else "ann")
    assert qcfs["perplexity"] < 1.04 * control["perplexity"]
    for coding in ("rate", "sigma_delta"):
        by_time = [rows["snn", coding, t, "synchronous"]["perplexity"] for t in (2, 4, 8)]
        assert by_time[0] > by_time[1] > 0.995 * by_time[2]
        assert by_time[2] < 1.01 * qcfs["perplexity"]
    assert "control" in done.stdout
    assert "How far each depth has settled" in (tmp_path / "report.html").read_text()
    assert {"prompt", "ann", "snn"} <= results["extra"]["samples"][0].keys()
