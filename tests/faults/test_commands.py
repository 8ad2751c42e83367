"""Commands that are killed, meet a full disk, or come in pairs end with the undisturbed result or one clear line; all of the
trials: ``python benchmarks/faults.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import command_trials
from command_runs import Ended

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> command_trials.Bench:
    return command_trials.Bench.of(tmp_path_factory.mktemp("commands"), ("convert", "tune"))


@pytest.mark.parametrize(("part", "count"), [("kills", 4), ("pairs", 6)])
def test_the_result_is_the_undisturbed_one(bench: command_trials.Bench, part: str, count: int) -> None:
    assert command_trials.counted(bench, part, count)["which"] == {}


def test_a_full_disk_costs_one_line(bench: command_trials.Bench) -> None:
    if not command_trials.may_mount(bench.root / "disk"):
        pytest.skip("small disks need the right to mount")
    assert command_trials.counted(bench, "disk_full", 6)["which"] == {}


def test_another_result_would_be_seen(bench: command_trials.Bench) -> None:
    case, out = bench.cases["tune"], bench.fresh()
    command_trials.run([*case.on(out), "--seed", "1"], bench.root)
    assert bench.wrong_at_the_end(case, out, Ended(0)) == "another result than undisturbed"
    assert "Traceback" in str(bench.wrong_at_the_end(case, out, Ended(1, ["Traceback", "ValueError"])))
    assert not Ended(2, ["fas: error: one", "and another"]).refused
