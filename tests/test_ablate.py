"""``fas ablate``: the plan says what it computes, each cell once, restartable, and equal to what the other commands give."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import folders
import numpy as np
import pytest
import torch
from test_ablation_plan import planned

from fas.calibration import CalibrationOptions
from fas.cli import main
from fas.errors import CheckpointError, ConfigError, DataError, FasError
from fas.pipeline import ablation_tasks, stages
from fas.pipeline.ablate import run_ablation
from fas.pipeline.ablation_jobs import KILLED, Workers
from fas.pipeline.ablation_options import AblateOptions
from fas.pipeline.ablation_tasks import Control, Measurement, Network
from fas.pipeline.calibrate import CalibrateOptions, calibrate_again
from fas.pipeline.convert import run_conversion
from fas.pipeline.evaluate import evaluate_folder
from fas.progress import Progress, Silent
from fas.report.ablation_plots import ablation_figures
from fas.report.ablation_summary import Spread, summaries
from fas.report.ablation_table import markdown_ablation, plain_ablation
from fas.report.results import Results, Row

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {
    "levels": 4, "timesteps": 2, "stage1_steps": 3, "batch_size": 2, "length": 16, "calibration_sequences": 4,
    "align_steps": 1, "global_steps": 1, "eval_sequences": 4, "lr": 1e-3, "grid_levels": (3, 4), "grid_timesteps": (2, 3),
    "device": "cpu",
}  # fmt: skip
FEW = {"groups": ("stages", "calibration"), "seeds": (0, 1)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("ablate")
    return {"model": folders.save_ann(root / "ann"), "data": folders.save_text(root / "text.txt")}


@pytest.fixture(scope="module")
def whole(place: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[AblateOptions, Results]:
    options = AblateOptions(**place, **SMALL, **FEW, out=tmp_path_factory.mktemp("whole") / "run")
    return options, run_ablation(options)


def figures(results: Results, seeds: tuple[int, ...] = (0, 1), groups: str = "stages") -> list[dict[str, Any]]:
    """Everything of the rows of these seeds and groups that does not depend on the machine's load."""
    rows = [row for row in results.rows if row.seed in seeds and (row.group or "stages") in groups]
    return [vars(replace(row, seconds=None)) for row in rows]


def row_of(results: Results, variant: str, seed: int = 0) -> Row:
    return next(row for row in results.rows if (row.variant, row.seed) == (variant, seed))


# what is computed


def test_rows_are_those_of_the_plan(whole: tuple[AblateOptions, Results]) -> None:
    options, results = whole
    assert [(row.group, row.variant) for row in results.rows if row.group and row.seed == 1] == list(planned(options))
    assert [(row.name, row.seed) for row in results.rows if row.group is None] == [
        ("control", 0), ("qcfs", 0), ("qcfs", 0), ("control", 1), ("qcfs", 1), ("qcfs", 1),
    ]  # fmt: skip
    assert all(row.value > 0 and row.error is None for row in results.rows)
    assert row_of(results, "both stages").stage2
    assert all(row.by_site is None and row.steps_by_site is None for row in results.rows if row.group)
    assert not row_of(results, "Stage 1 only").stage2
    assert row_of(results, "both stages", 0).value != row_of(results, "both stages", 1).value
    assert Results.read(options.out / "ablation.json").to_dict() == results.to_dict()


def test_cells_are_what_convert_and_calibrate_give(
    whole: tuple[AblateOptions, Results], place: dict[str, str], tmp_path: Path
) -> None:
    options, results = whole
    plain: dict[str, Any] = {"before_stage2": True, "align_steps": 0, "global_steps": 0}  # as these cells are
    for stage1, names in ((True, ("Stage 1 only", "both stages")), (False, ("neither stage", "Stage 2 only"))):
        conversion = replace(options.conversion(1, 4, stage1), out=tmp_path / f"snn-{stage1}", **plain)
        found = run_conversion(conversion)
        by_stage = {row.stage2: row for row in found.rows if row.name == "snn" and row.schedule == "synchronous"}
        for stage2, name in enumerate(names):
            mine, other = row_of(results, name, seed=1), by_stage[bool(stage2)]
            assert (mine.value, mine.spikes_per_neuron) == (other.value, other.spikes_per_neuron)
        qcfs = next(row for row in results.rows if row.name == "qcfs" and row.stage1 == stage1 and row.seed == 1)
        assert qcfs.value == next(row.value for row in found.rows if row.name == "qcfs")
    trained = run_conversion(replace(options.conversion(1, 4, True), out=tmp_path / "snn-True", **plain))
    control = next(row for row in results.rows if row.name == "control" and row.seed == 1)
    assert control.value == next(row.value for row in trained.rows if row.name == "control")

    again = CalibrateOptions(
        str(tmp_path / "snn-True"), place["data"], tmp_path / "three", (3,), calibration_sequences=4, length=16,
        seed=1, device="cpu",
    )  # fmt: skip
    calibrate_again(again, Silent())
    more = run_ablation(replace(options, groups=("grid",), grid_levels=(4,), seeds=(1,)))
    results_at_3 = evaluate_folder(
        tmp_path / "three", place["data"], timesteps=(3,), length=16, eval_sequences=4, device="cpu"
    )
    mine, other = row_of(more, "L = 4, T = 3", seed=1), results_at_3.rows[-1]
    assert (mine.value, mine.spikes_per_neuron) == (other.value, other.spikes_per_neuron)


def test_sequences_of_a_cell_are_those_that_stage_2_gets(
    whole: tuple[AblateOptions, Results], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[int, CalibrationOptions]] = []
    calibrate = stages.calibrate

    def watched(model: Any, batches: Any, settings: CalibrationOptions, *rest: Any) -> Any:
        seen.append((sum(len(batch["input_ids"]) for batch in batches), settings))
        return calibrate(model, batches[:1], settings, *rest)

    monkeypatch.setattr(stages, "calibrate", watched)
    options = replace(whole[0], out=tmp_path / "sizes", groups=("size", "neurons"), seeds=(0,))
    run_ablation(options)
    coarse = CalibrationOptions(fit_steps=0)
    assert [count for count, _ in seen] == [4, 4, 4, 8, 16, 32, 64]  # neurons first, then sizes
    assert [settings for _, settings in seen[:2]] == [replace(coarse, per_channel=False), coarse]


# restarting


class Killed(BaseException):
    pass


class KillAt(Silent):
    def __init__(self, words: str) -> None:
        self.words = words

    def note(self, text: str) -> None:
        if self.words in text:
            raise Killed


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every task that is done, in order."""
    found: list[Any] = []
    for kind in (Control, Network, Measurement):

        def do(self: Any, *arguments: Any, old: Any = kind.do) -> None:
            found.append(self)
            old(self, *arguments)

        monkeypatch.setattr(kind, "do", do)
    return found


@pytest.mark.parametrize("words", ["Stage 1 model 2 of 2", "cell 3 of 4"])
def test_a_killed_run_goes_on_and_ends_the_same(
    whole: tuple[AblateOptions, Results], done: list[Any], tmp_path: Path, words: str
) -> None:
    options = replace(whole[0], out=tmp_path / "run", groups=("stages",), seeds=(0,))
    with pytest.raises(Killed):
        run_ablation(options, KillAt(words))
    assert not (options.out / "ablation.json").exists()
    before = list(done)
    assert figures(run_ablation(options)) == figures(whole[1], seeds=(0,))
    assert len(done) == len(set(done)) == 1 + 2 + 4
    assert before == done[: len(before)]


def test_more_seeds_and_groups_compute_what_is_missing(
    whole: tuple[AblateOptions, Results], done: list[Any], tmp_path: Path
) -> None:
    options = replace(whole[0], out=tmp_path / "run", groups=("calibration",), seeds=(0,))
    run_ablation(options)
    assert [type(task) for task in done] == [Control, Network, *[Measurement] * 4]
    done.clear()
    more = run_ablation(replace(options, groups=FEW["groups"], seeds=FEW["seeds"]))
    assert figures(more, groups="stages calibration") == figures(whole[1], groups="stages calibration")
    of_0 = [task for task in done if task.seed == 0]
    assert [(type(task), getattr(task, "stage1", None)) for task in of_0] == [
        (Network, False), (Measurement, None), (Measurement, None),
    ]  # fmt: skip
    assert not any(task.cell.stage1 for task in of_0[1:])
    assert len(done) - len(of_0) == 1 + 2 + 6
    done.clear()
    assert figures(run_ablation(replace(options, groups=("stages",), seeds=(1,)))) == figures(whole[1], seeds=(1,))
    assert done == []
    assert [path.name for path in options.out.glob("*.svg")] == ["ablation-stages.svg"]


def test_another_ablation_in_the_folder_is_refused(whole: tuple[AblateOptions, Results]) -> None:
    for changed in ({"stage1_steps": 4}, {"coverage": "ffn"}, {"eval_sequences": 3}, {"calibration_sequences": 5}):
        with pytest.raises(CheckpointError, match="begun with other arguments"):
            run_ablation(replace(whole[0], **changed, seeds=(2,)))
    assert not (whole[0].out / "ablation.work" / "seed-2.work").exists()


# failures


def test_a_cell_that_fails_costs_itself_and_is_tried_again(
    whole: tuple[AblateOptions, Results], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calibrate = stages.calibrate

    def fails(model: Any, batches: Any, settings: CalibrationOptions, *rest: Any) -> Any:
        if not settings.coarse:
            raise torch.OutOfMemoryError("no room\nfor more")
        return calibrate(model, batches, settings, *rest)

    options = replace(whole[0], out=tmp_path / "run", groups=("calibration",), seeds=(1,))
    with monkeypatch.context() as patched:
        patched.setattr(stages, "calibrate", fails)
        results = run_ablation(options)
    assert [(row.variant, row.error) for row in results.rows if row.error] == [
        ("fine only", "OutOfMemoryError: no room")
    ]
    good = [row for row in figures(results, groups="calibration") if row["error"] is None]
    wanted = figures(whole[1], (1,), "calibration")
    assert good == [row for row in wanted if row["variant"] not in (None, "fine only")]
    for table in (plain_ablation(results), markdown_ablation(results)):
        assert "fine only: failed for seed 1: OutOfMemoryError: no room" in table
        assert "0 (1 failed)" in table
    assert ">failed<" in ablation_figures(results)["calibration"]
    assert Results.read(options.out / "ablation.json").to_dict() == results.to_dict()
    assert figures(run_ablation(options), groups="calibration") == wanted


def test_a_stage_1_that_fails_costs_its_cells_and_a_control_its_seed(
    whole: tuple[AblateOptions, Results], monkeypatch: pytest.MonkeyPatch, done: list[Any], tmp_path: Path
) -> None:
    train_qcfs, train_control = ablation_tasks.train_qcfs, ablation_tasks.train_control

    def no_qcfs(run: Any, *rest: Any) -> Any:
        if run.options.stage1 == "none":
            raise FasError("no scales")
        return train_qcfs(run, *rest)

    def no_control(run: Any, *rest: Any) -> Any:
        if run.options.seed == 1:
            raise FasError("no gradient")
        return train_control(run, *rest)

    options = replace(whole[0], out=tmp_path / "run", groups=("stages",))
    monkeypatch.setattr(ablation_tasks, "train_qcfs", no_qcfs)
    monkeypatch.setattr(ablation_tasks, "train_control", no_control)
    results = run_ablation(options)
    assert [task for task in done if task.seed == 1] == [Control(1)]  # what lacks its ground is not tried
    assert [task.cell.stage1 for task in done if isinstance(task, Measurement)] == [True, True]
    why = {(row.variant, row.seed): row.error for row in results.rows if row.group}
    lacking = "the Stage 1 model failed: "
    assert why == {
        ("neither stage", 0): lacking + "no scales",
        ("Stage 1 only", 0): None,
        ("Stage 2 only", 0): lacking + "no scales",
        ("both stages", 0): None,
    } | {(name, 1): lacking + "the control failed: no gradient" for name in planned(options) for name in [name[1]]}
    summary = {entry.variant: entry for entry in summaries(results)["stages"]}
    assert summary["neither stage"].ratio is None
    assert len(summary["both stages"].ratio.values) == 1
    with pytest.raises(FasError, match="no control could be trained: no gradient"):
        run_ablation(replace(options, seeds=(1,)))


def test_bad_input_costs_nothing(place: dict[str, str], tmp_path: Path) -> None:
    common = place | SMALL | {"out": tmp_path / "run"}
    for changed, kind in (
        ({"groups": ("stges",)}, ConfigError),
        ({"data": str(tmp_path / "none.txt")}, DataError),
        ({"grid_timesteps": (0,)}, ConfigError),
        ({"model": str(tmp_path)}, FasError),
    ):
        with pytest.raises(kind):
            run_ablation(AblateOptions(**(common | changed)))
    assert not (tmp_path / "run").exists()


# processes


def test_two_processes_give_what_one_gives(whole: tuple[AblateOptions, Results], tmp_path: Path) -> None:
    said: list[str] = []

    class Heard(Silent):
        def done(self, summary: str = "") -> None:
            said.append(summary)

    results = run_ablation(replace(whole[0], out=tmp_path / "run", groups=("stages",), jobs=2), Heard())
    assert figures(results) == figures(whole[1])
    assert said == ["2 of 2 finished", "4 of 4 finished", "8 of 8 finished"]


@dataclass(frozen=True)
class Toy:
    """Writes its name; or raises, or dies."""

    name: str
    end: str = "well"

    @property
    def title(self) -> str:
        return self.name

    def do(self, bench: Path, progress: Progress) -> None:
        assert torch.get_num_threads() == 1
        if self.end == "raise":
            raise ValueError("not this one")
        if self.end == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        (bench / self.name).write_text(str(os.getpid()))  # it may have to be done twice


def test_a_killed_process_costs_its_own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # one thread all the same
        monkeypatch.delenv(name, raising=False)
    jobs = [Toy("a"), Toy("b", "raise"), Toy("c", "die"), Toy("d")]
    with Workers(2, tmp_path, Silent()) as workers:
        failures = workers.run("toy", jobs)
        left = {path.name for path in tmp_path.iterdir()}
        assert workers.pool is None  # that of one process is gone
        assert workers.run("toy", [Toy("f")]) == {}
    assert {job.name: why for job, why in failures.items()} == {"b": "ValueError: not this one", "c": KILLED}
    assert left == {"a", "d"}


# for people


def test_spread_is_numpy_s() -> None:
    values = np.random.default_rng(0).normal(1.1, 0.2, 5)
    spread = Spread(tuple(values.tolist()))
    assert np.allclose(
        [spread.mean, spread.deviation, spread.low, spread.high],
        [values.mean(), values.std(ddof=1), values.min(), values.max()],
    )
    assert Spread((1.0,)).deviation is None


def test_ratios_are_against_the_control_of_the_same_seed(whole: tuple[AblateOptions, Results]) -> None:
    results = whole[1]
    controls = [row.value for row in results.rows if row.name == "control"]
    values = [row_of(results, "coarse only", seed).value for seed in (0, 1)]
    grids = [row.value for row in results.rows if row.name == "qcfs" and row.stage1]
    spikes = [row_of(results, "coarse only", seed).spikes_per_neuron for seed in (0, 1)]
    assert controls[0] != controls[1]
    entry = next(entry for entry in summaries(results)["calibration"] if entry.variant == "coarse only")
    assert entry.ratio.values == tuple(v / c for v, c in zip(values, controls, strict=True))
    assert entry.qcfs.values == tuple(v / c for v, c in zip(grids, controls, strict=True))
    assert entry.spikes.values == tuple(spikes)
    ratio = np.array(entry.ratio.values)
    line = next(line for line in plain_ablation(results).splitlines() if line.startswith("coarse only"))
    assert f"×{ratio.mean():.3f} ± {ratio.std(ddof=1):.3f}  {ratio.min():.3f} – {ratio.max():.3f}" in line
    assert line.split()[-2:] == [f"{np.mean(spikes):.2f}", "2"]


def texts_of(svg: str) -> set[str]:
    return {element.text for element in ElementTree.fromstring(svg).iter() if element.text and element.text.strip()}


def test_figures_show_every_variant_and_its_figures(whole: tuple[AblateOptions, Results]) -> None:
    results = whole[1]
    pictures = ablation_figures(results)
    assert set(pictures) == {"stages", "calibration"}
    for group, entries in summaries(results).items():
        texts = texts_of(pictures[group])
        for entry in entries:
            percent = 100 * (np.array(entry.ratio.values) - 1)
            assert entry.variant in texts
            assert f"{percent.mean():+.1f} ± {percent.std(ddof=1):.1f}".replace("-", "−") in texts


def test_the_heat_map_has_a_number_in_its_place() -> None:
    extra = {"groups": {"grid": "Levels × timesteps"}}
    cells = {(3, 2): 1.5, (3, 4): 1.25, (8, 2): 2.0, (8, 4): None, (15, 2): 0.9, (15, 4): 0.8}
    rows = [Row("control", value=10.0, seed=0)] + [
        Row("snn", value=ratio and 10 * ratio, levels=L, timesteps=T, seed=0, group="grid", variant=f"L = {L}, T = {T}")
        for (L, T), ratio in cells.items()
    ]
    svg = ElementTree.fromstring(ablation_figures(Results("m", "d", 0, rows, extra=extra))["grid"])
    places = {}
    for element in svg.iter("{http://www.w3.org/2000/svg}text"):
        at = [float(word) for word in element.get("transform", "").partition("translate(")[2].partition(")")[0].split()]
        places[element.text] = at or [float(element.get("x")), float(element.get("y"))]
    (x, y), right, below, both = (np.array(places[text]) for text in ("+50.0", "+25.0", "+100.0", "failed"))
    assert np.allclose([right[1], below[0], *both], [y, x, right[0], below[1]], atol=15)
    assert right[0] > x + 50
    assert below[1] > y + 15


def test_command_line(place: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        f"--{k.replace('_', '-')}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in SMALL.items()
    ]
    flags += [f"--{name}={value}" for name, value in place.items()]
    command = [
        "ablate",
        *flags,
        "--out",
        str(tmp_path / "run"),
        "--groups",
        "neurons,grid",
        "--seeds",
        "3",
        "--seeds=4",
    ]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "2 seed(s): a spread that means something needs three" in err
    assert "ANN on held-out training data" in err
    assert "L = 3, T = 2" in out
    assert "seeds 3, 4" in " ".join(out.split())
    assert main([*command, "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found["extra"]["seeds"] == [3, 4]
    assert found["extra"]["options"]["grid_timesteps"] == [2, 3]
    assert set(found["extra"]["groups"]) == {"neurons", "grid"}
    assert found["extra"]["variants"]["neurons"]["each site"]["stage2"]["per_channel"] is False
    assert {"fas", "torch"} <= set(found["versions"])
    assert len([row for row in found["rows"] if row.get("group") == "grid"]) == 8
    names = {path.name for path in (tmp_path / "run").iterdir()}
    pictures = {"ablation-neurons.svg", "ablation-grid.svg"}
    assert names == {"ablation.json", "ablation.md", "ablation.work"} | pictures
    markdown = (tmp_path / "run" / "ablation.md").read_text()
    assert all(f"]({name})" in markdown for name in pictures)
    assert "currentColor" not in (tmp_path / "run" / "ablation-grid.svg").read_text()
    assert main([*command, "--groups", "grids"]) == 2
    assert "group 'grids' is not known" in capsys.readouterr().err


def test_the_page_shows_the_committed_results() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from ablations import PAGE, PICTURES, committed, page  # python benchmarks/ablations.py writes it

    assert PAGE.read_text(encoding="utf-8") == page()
    assert committed()
    drawn = {f"{name}-{g}.svg": s for name, r in committed().items() for g, s in ablation_figures(r).items()}
    assert {path.name for path in PICTURES.glob("ablation-*.svg")} == set(drawn)
    for name, svg in drawn.items():
        picture = (PICTURES / name).read_text()  # its bytes depend on the version of matplotlib, its words do not
        words = {text for text in texts_of(svg) if not text.startswith(("http", "Matplotlib"))}
        assert words <= texts_of(picture)
        assert "currentColor" not in picture
