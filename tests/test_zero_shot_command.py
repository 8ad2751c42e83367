"""``fas eval --tasks`` as one runs it: rows, options that contradict each other, a limit of memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
import test_zero_shot
import tiny
import torch

from fas.cli import main
from fas.errors import FasError
from fas.pipeline.convert import run_conversion
from fas.pipeline.options import ConvertOptions
from fas.pipeline.zero_shot import evaluate_tasks
from fas.report.results import Results

place = test_zero_shot.place
"""The fixture: a converted folder with its control, and files of all three shapes."""


def test_the_command_shows_a_row_for_each_form_and_task(place, capsys) -> None:
    tasks = f"{place['questions']},{place['partial']}"
    assert main(["eval", str(place["snn"]), "--tasks", tasks, "--timesteps", "2", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert sum(line.startswith("questions ") for line in lines) == 4
    assert sum(line.startswith("partial ") for line in lines) == 4
    assert "questions: 2 of 12 items were longer than the context and were cut at their left." in out
    tasks += f",{place['cloze']}"  # whose standard error lm-eval prints about
    assert main(["eval", str(place["snn"]), "--tasks", tasks, "--timesteps", "2", "--quiet", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["task"] for row in rows} == {"questions", "partial", "cloze"}
    assert all(("perplexity" in row) == (row["task"] == "cloze") for row in rows)
    assert all(row["metric"] == "acc" and 0 <= row["value"] <= 1 for row in rows)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tasks", "x.jsonl", "--data", "builtin"], "--data does not go with --tasks"),
        (["--tasks", "x.jsonl", "--diagnose"], "--diagnose does not go with --tasks"),
        (["--tasks", "x.jsonl", "--stride", "4"], "--stride does not go with --tasks"),
        (["--limit", "5"], "--limit does not go without --tasks"),
        (["--num-fewshot", "0"], "--num-fewshot does not go without --tasks"),
        (["--tasks", "{root}/questions.jsonl", "--length", "65"], "beyond the model's context of 64"),
    ],
)
def test_options_that_contradict_each_other(place, capsys, more, says) -> None:
    assert main(["eval", str(place["snn"]), "--quiet", *(m.format(root=place["root"]) for m in more)]) == 2
    assert says in capsys.readouterr().err


def test_a_memory_limit_cuts_batches_and_changes_no_figure(place) -> None:
    read: list[int] = []

    def seen(module: torch.nn.Module, given: Any) -> None:
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == tiny.VOCAB:
            read.append(len(given[0]))

    results, batches = [], []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(seen)
    try:
        for limit in (None, "1.5 MB"):
            read.clear()
            results.append(evaluate_tasks(place["snn"], [str(place["questions"])], memory_limit=limit))
            batches.append(list(read))
    finally:
        handle.remove()
    whole, cut = results
    for left, right in zip(whole.rows, cut.rows, strict=True):
        assert (left.value, left.metrics) == (right.value, right.metrics)
        assert left.loss == pytest.approx(right.loss, rel=1e-5)
    together = [rows.count(3 * 4) for rows in batches]  # three answers of four timesteps
    assert 0 < together[1] < together[0]
    with pytest.raises(FasError, match=r"no task could be measured; questions: .*memory limit"):
        evaluate_tasks(place["snn"], [str(place["questions"])], memory_limit=1)


def test_the_prefix_of_a_model_has_a_row_of_its_own(place, tmp_path) -> None:
    made = Results.read(place["snn"] / "results.json")
    options = ConvertOptions(
        model=made.model, data=made.data, out=tmp_path / "snn", stage1="none", stage2=False, levels=8, timesteps=(4,),
        length=8, eval_sequences=2, prefix=(5, 7),
    )  # fmt: skip
    run_conversion(options)
    rows = evaluate_tasks(tmp_path / "snn", [str(place["questions"])]).rows
    assert [row.name for row in rows] == ["ann", "ann+prefix", "control", "qcfs", "snn"]
    assert [row.error for row in rows] == [None] * 5
    assert rows[0].loss != rows[1].loss
