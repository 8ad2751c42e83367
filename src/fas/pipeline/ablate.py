"""``fas ablate``: the ablations of both stages over seeds, restartable; a task that fails costs itself only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from fas.errors import FasError
from fas.locks import one_at_a_time
from fas.pipeline.ablation_jobs import Workers
from fas.pipeline.ablation_options import AblateOptions
from fas.pipeline.ablation_plan import Cell, Group, cell_of, described, groups_of
from fas.pipeline.ablation_tasks import Bench, Control, Measurement, Network, Task, loaded
from fas.progress import Progress, Silent
from fas.report.ablation_files import write_ablation
from fas.report.results import Results, Row

ENOUGH_SEEDS = 3


@one_at_a_time(lambda options: options.out)
def run_ablation(options: AblateOptions, progress: Progress | None = None) -> Results:
    """Compute every cell of the groups for every seed and return the rows; writes JSON, table and figures to ``options.out``.

    What lies finished in ``options.out`` is not computed again: a killed run goes on, and a run with more seeds or groups adds
    what is missing. Figures do not depend on ``jobs`` (where torch has one thread in any case). Raises `FasError` kinds for
    bad input before anything is computed, and `FasError` if no seed has a control.
    """
    progress, start = progress or Silent(), time.time()
    groups = groups_of(options)
    cells = {(group.name, v.name): cell_of(v, options) for group in groups for v in group.variants}
    loaded.cache_clear()
    bench = Bench.of(options)
    if len(options.seeds) < ENOUGH_SEEDS:
        progress.note(f"{len(options.seeds)} seed(s): a spread that means something needs three")
    wanted, there = max(cell.sequences for cell in cells.values()), len(loaded(options).source.training)
    if wanted > there:
        progress.note(f"the training text has {there} sequences; variants that calibrate on more have these")
    failures = _compute(bench, list(dict.fromkeys(cells.values())), progress)
    results = Results(options.model, options.data, options.seeds[0], _rows(bench, cells, failures))
    evaluation = loaded(options).source.evaluation
    loaded.cache_clear()
    results.extra = {
        "seeds": list(options.seeds),
        "groups": {group.name: group.title for group in groups},
        "variants": _described(groups, cells),
        "options": {**asdict(options), "out": str(options.out)},
        "evaluation": {
            "data": options.data, "eval_data": options.eval_data, **evaluation.about(),
        },
        "seconds": round(time.time() - start, 1),
    }  # fmt: skip
    write_ablation(results, options.out, "ablation")
    return results


def _compute(bench: Bench, cells: Sequence[Cell], progress: Progress) -> dict[Task, str]:
    """Bring every result that is missing to the disk; why what failed did."""
    seeds = bench.options.seeds
    controls = [Control(seed) for seed in seeds]
    measurements = [Measurement(seed, cell) for seed in seeds for cell in cells]
    networks = list(dict.fromkeys(task.network for task in measurements))
    bench.top.open()
    for task in [*controls, *networks]:
        task.workspace(bench).open()
    with Workers(bench.options.jobs, bench, progress) as workers:

        def missing(what: str, tasks: Sequence[Task], without: dict[Any, str]) -> dict[Task, str]:
            """Do what is not done, but for what lacks that on which it stands; why the others failed, and these."""
            left = [task for task in tasks if task.row(bench) is None]
            if len(left) < len(tasks):
                progress.note(f"{len(tasks) - len(left)} of {len(tasks)} {what}s were computed before")
            able = [task for task in left if task not in without]
            return workers.run(what, able) | {task: without[task] for task in left if task in without}

        failures = missing("control", controls, {})
        if len(failures) == len(controls):
            raise FasError(f"no control could be trained: {next(iter(failures.values()))}")
        without = {n: f"the control failed: {failures[c]}" for n in networks if (c := Control(n.seed)) in failures}
        failures |= missing("Stage 1 model", networks, without)
        without = {m: f"the Stage 1 model failed: {failures[n]}" for m in measurements if (n := m.network) in failures}
        return failures | missing("cell", measurements, without)


def _rows(bench: Bench, cells: dict[tuple[str, str], Cell], failures: dict[Task, str]) -> list[Row]:
    rows = []
    for seed in bench.options.seeds:
        networks = dict.fromkeys(Measurement(seed, cell).network for cell in cells.values())
        for task in [Control(seed), *networks]:
            row = task.row(bench)
            if row is not None:
                stage1 = task.stage1 if isinstance(task, Network) else None
                rows.append(replace(row, seed=seed, stage1=stage1))
        for (group, variant), cell in cells.items():
            task = Measurement(seed, cell)
            row = task.row(bench) or _failed(cell, failures[task])
            # by site it would be the largest part of the file
            row = replace(row, by_site=None, steps_by_site=None, stage1=cell.stage1)
            rows.append(replace(row, seed=seed, group=group, variant=variant))
    return rows


def _failed(cell: Cell, reason: str) -> Row:
    target = cell.target
    rows = target.rows if target.coding == "rate" else None
    return Row(
        "snn", target.coding, rows, target.coverage, timesteps=target.timesteps, levels=target.levels, error=reason
    )


def _described(groups: Sequence[Group], cells: dict[tuple[str, str], Cell]) -> dict[str, Any]:
    return {group.name: {v.name: described(cells[group.name, v.name]) for v in group.variants} for group in groups}
