"""``fas compare``: conversion methods on one model, task and seed; restartable, and a cell that fails costs itself only."""

from __future__ import annotations

import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, set_seed

import fas.methods as known
from fas.accounting import ledger
from fas.errors import ConfigError
from fas.methods import Method
from fas.pipeline.measure import dense_row, qcfs_row, spiking_row
from fas.pipeline.options import ConvertOptions
from fas.pipeline.prepared import prepared
from fas.pipeline.run import Run
from fas.pipeline.stages import kept_row, train_control, train_qcfs
from fas.pipeline.workspace import Workspace
from fas.progress import Progress, Silent
from fas.report.comparison import as_csv
from fas.report.html import write_report
from fas.report.results import Results, Row, write_whole
from fas.runtime.control import at_time, clock_of

USUAL = (2, 4, 8, 16, 32)


@dataclass(frozen=True)
class CompareOptions:
    """What is compared. Raises `ConfigError` for unknown methods, or times that are none."""

    base: ConvertOptions
    """Model, data, coverage and Stage 1: what all methods share. Its codings and times are those of no method."""
    methods: tuple[str, ...] = ()
    """By name; () is all that are registered."""
    timesteps: tuple[int, ...] = USUAL

    def __post_init__(self) -> None:
        if not self.timesteps or len(set(self.timesteps)) < len(self.timesteps) or min(self.timesteps) < 1:
            raise ConfigError(
                f"timesteps {list(self.timesteps)} are not valid: give at least one, each once, all above 0"
            )
        for name in self.methods:
            known.method_named(name)
        if self.base.stage1 == "none":
            raise ConfigError("a comparison needs the QCFS model that Stage 1 trains; leave stage1='none' out")

    @property
    def chosen(self) -> list[Method]:
        """In the order in which they were asked for."""
        return [known.method_named(name) for name in self.methods or known.methods()]


def run_comparison(options: CompareOptions, progress: Progress | None = None) -> Results:
    """Measure every method at every T; writes compare.json, compare.csv and compare.html to the base's ``out``.

    What was measured before is not measured again. Raises `FasError` kinds for bad input before anything is computed.
    """
    progress, start = progress or Silent(), time.time()
    base = options.base
    ready = prepared(base, progress)
    workspace = Workspace(base.out / "compare", ready.fingerprint(base, codings=None, timesteps=None))
    workspace.open()
    run = ready.run(base, workspace, progress)
    decision = train_control(run, ready.ann)
    train_qcfs(run, ready.ann, decision)
    ready.release()
    rows = [
        kept_row(workspace, "row-control", lambda: _dense(run)),
        kept_row(workspace, "row-qcfs", lambda: qcfs_row(run.load("qcfs"), run.evaluation, run.at_once, progress)),
    ]
    cells = [(method, timesteps) for method in options.chosen for timesteps in options.timesteps]
    for number, (method, timesteps) in enumerate(cells, 1):
        progress.note(f"{number} of {len(cells)}: {method.title}, T = {timesteps}")
        rows.append(_row(run, method, timesteps))
    results = Results(base.model, base.data, base.seed, rows)
    about = ("title", "source", "start", "waits", "assumed")
    results.extra = {
        "methods": {method.name: {name: getattr(method, name) for name in about} for method in options.chosen},
        "control": decision,
        "options": {**asdict(base), "out": str(base.out)},
        "evaluation": {"data": base.data, "eval_data": base.eval_data, **run.evaluation.about()},
        "seconds": round(time.time() - start, 1),
    }
    write_comparison(results, base.out)
    return results


def write_comparison(results: Results, folder: Path) -> None:
    """JSON, CSV and page."""
    results.write(folder / "compare.json")
    write_whole(folder / "compare.csv", as_csv(results))
    write_report(results, folder / "compare.html")


def _dense(run: Run) -> Row:
    return dense_row("control", run.load("control"), run.evaluation, run.at_once, run.progress)


def _row(run: Run, method: Method, timesteps: int) -> Row:
    """The cell's row, or one that says why there is none; the latter is tried again the next time."""
    try:
        return kept_row(run.workspace, f"cell-{method.name}-{timesteps}", lambda: _measured(run, method, timesteps))
    except Exception as error:  # a method may fail in any way; the others are worth having
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        run.progress.note(f"failed: {reason}")
        return Row("snn", coverage=run.options.coverage, timesteps=timesteps, method=method.name, error=reason)


def _measured(run: Run, method: Method, timesteps: int) -> Row:
    set_seed(run.options.seed)
    model, batches = run.load(method.start), run.calibration_batches()
    start = time.time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that T is small for L is what is compared
        base = run.options.configurations()[0]
        config = known.built(method, model, base, timesteps, batches, run.progress)
        seconds = time.time() - start
        row = spiking_row(model, config, run.evaluation, run.at_once, run.progress)
        strict, ann = _energy(model, batches[0], config.model_dump())
    spent = row.spikes_per_neuron
    return Row(
        "snn", coverage=row.coverage, levels=row.levels, method=method.name, timesteps=timesteps,
        latency_timesteps=method.latency(timesteps, known.depth_of(model)), metric=row.metric, value=row.value,
        metrics=row.metrics, perplexity=row.perplexity, loss=row.loss, tokens=row.tokens, items=row.items,
        spikes_per_neuron=None if spent is None else spent * method.spent(timesteps), seconds=row.seconds,
        seconds_convert=round(seconds, 2), energy_strict_pj=strict, energy_ann_pj=ann,
    )  # fmt: skip


def _energy(
    model: PreTrainedModel, batch: dict[str, Tensor], config: dict[str, Any]
) -> tuple[float | None, float | None]:
    """Strict energy of the whole network and the ANN's, fp32, a token; the ledger knows nothing of a method's own neuron."""
    if clock_of(model).neuron is not None:
        return None, None
    with at_time(model, **config):
        statement = ledger(model, batch).forward
    energy, column = statement.energy, statement.energy.columns[0]
    return (
        energy.picojoules["snn_strict"][column] / statement.tokens,
        energy.picojoules["ann_fp32"][column] / statement.tokens,
    )
