"""``fas compare``: conversion methods on one model, task and seed; restartable, and a cell that fails costs itself only."""

from __future__ import annotations

import time
import traceback
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, set_seed

import fas.methods as known
from fas.config import USUAL_LEVELS
from fas.errors import ConfigError, DiskError
from fas.locks import one_at_a_time
from fas.methods import Method
from fas.methods.start import as_snn
from fas.pipeline.measure import dense_row, qcfs_row, spiking_row
from fas.pipeline.options import ConvertOptions
from fas.pipeline.outliers import outliers_of, prefixed_ann, with_outliers_treated
from fas.pipeline.prepared import prepared
from fas.pipeline.priced import peak_memory, priced, priced_as_integers
from fas.pipeline.run import CALIBRATION_BATCH, Run
from fas.pipeline.stages import kept_row, train_control, train_qcfs
from fas.pipeline.workspace import Workspace
from fas.progress import Progress, Silent
from fas.report.comparison import as_csv
from fas.report.html import write_report
from fas.report.results import Results, Row
from fas.storage import write_whole
from fas.tasks.glue import LANGUAGE_MODELING

USUAL = (2, 4, 8, 16, 32)
COUNTED = 1024
"""Tokens, about, that energy and memory are counted on."""
OF_A_METHOD = ("codings", "timesteps", "steps", "rows", "neurons_per_channel")
"""Options of a conversion that each method sets for itself."""


@dataclass(frozen=True)
class CompareOptions:
    """What is compared. Raises `ConfigError` for unknown methods, or times that are none."""

    base: ConvertOptions
    """Model, data, coverage, treatment of massive activations and Stage 1: what all methods share. `OF_A_METHOD` is ignored."""
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

    @property
    def chosen(self) -> list[Method]:
        """In the order in which they were asked for."""
        return [known.method_named(name) for name in self.methods or known.methods()]

    @property
    def shared(self) -> ConvertOptions:
        """``base`` with settings in the place of `OF_A_METHOD` that every method can start from."""
        return replace(
            self.base,
            codings=("sigma_delta",),
            timesteps=(USUAL_LEVELS if self.base.levels is None else self.base.levels,),
            steps=None,
            rows="mean",
            neurons_per_channel=1,
        )


@one_at_a_time(lambda options: options.base.out)
def run_comparison(options: CompareOptions, progress: Progress | None = None) -> Results:
    """Measure every method at every T; writes compare.json, compare.csv and compare.html to the base's ``out``.

    What was measured before is not measured again. With ``stage1="none"`` nothing is trained: methods start from the ANN, or
    from the QCFS model as `fas.prepare` gives it. Raises `FasError` kinds for bad input before anything is computed.
    """
    progress, start = progress or Silent(), time.time()
    base = options.shared
    ready = prepared(base, progress)
    workspace = Workspace(
        base.out / "compare", ready.fingerprint(base, codings=None, timesteps=None, neurons_per_channel=None)
    )
    workspace.open()
    run = with_outliers_treated(ready.run(base, workspace, progress), ready.ann)
    decision = train_control(run, ready.ann)
    train_qcfs(run, ready.ann, decision)
    ready.release()
    rows = _references(run)
    cells = [(method, timesteps) for method in options.chosen for timesteps in options.timesteps]
    for number, (method, timesteps) in enumerate(cells, 1):
        progress.note(f"{number} of {len(cells)}: {method.title}, T = {timesteps}")
        rows.append(_row(run, method, timesteps))
    results = Results(base.model, base.data, base.seed, rows)
    about = ("title", "source", "start", "waits", "assumed")
    results.extra = {
        "methods": {method.name: {name: getattr(method, name) for name in about} for method in options.chosen},
        "control": decision,
        "options": {name: value for name, value in asdict(run.options).items() if name not in OF_A_METHOD}
        | {"out": str(base.out)},
        "evaluation": {"data": base.data, "eval_data": base.eval_data, **run.evaluation.about()},
        "seconds": round(time.time() - start, 1),
    }
    if (found := outliers_of(run)) is not None:
        results.extra["massive_activations"] = found
    write_comparison(results, base.out)
    return results


def write_comparison(results: Results, folder: Path) -> None:
    """JSON, CSV and page."""
    results.write(folder / "compare.json")
    write_whole(folder / "compare.csv", as_csv(results))
    write_report(results, folder / "compare.html")


def _references(run: Run) -> list[Row]:
    """The control (without training the ANN itself), the ANN with the prefix where there is one, and the QCFS model."""
    name = "ann" if run.options.stage1 == "none" else "control"
    rows = [kept_row(run.workspace, f"row-{name}", lambda: _dense(run, name, run.load("control")))]
    if run.options.prefix and not run.source.new_head:
        rows.append(kept_row(run.workspace, "row-ann-prefix", lambda: _dense(run, "ann+prefix", prefixed_ann(run))))
    return [*rows, kept_row(run.workspace, "row-qcfs", lambda: _quantized(run))]


def _dense(run: Run, name: str, model: PreTrainedModel) -> Row:
    row = dense_row(name, model, run.evaluation, run.at_once, run.progress)
    return replace(row, memory_mib=peak_memory(model, _batch(run)))


def _batch(run: Run) -> dict[str, Tensor]:
    """The calibration batch that energy and memory are counted on: a shorter one where its texts are long."""
    size = CALIBRATION_BATCH
    if run.options.task == LANGUAGE_MODELING:
        size = max(1, min(size, COUNTED // run.evaluation.about()["length"]))
    return run.calibration_batches(size)[0]


def _quantized(run: Run) -> Row:
    model, batch = run.load("qcfs"), _batch(run)
    row, memory = qcfs_row(model, run.evaluation, run.at_once, run.progress), peak_memory(model, batch)
    levels = run.options.levels
    at_once = run.options.configurations()[0].replaced(schedule="layerwise", timesteps=levels)
    return replace(row, memory_mib=memory, **priced_as_integers(as_snn(model, at_once), batch))


def _row(run: Run, method: Method, timesteps: int) -> Row:
    """The cell's row, or one that says why there is none; the latter is tried again the next time.

    Raises `DiskError`, which the other cells would meet, too.
    """
    try:
        return kept_row(run.workspace, f"cell-{method.name}-{timesteps}", lambda: _measured(run, method, timesteps))
    except DiskError:
        raise
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
        beside = priced(model, config, _batch(run), method.spent(timesteps))
    spent = row.spikes_per_neuron
    return Row(
        "snn", coverage=row.coverage, levels=row.levels, method=method.name, timesteps=timesteps,
        neurons_per_channel=row.neurons_per_channel or 1,
        latency_timesteps=method.latency(timesteps, known.depth_of(model)), metric=row.metric, value=row.value,
        metrics=row.metrics, perplexity=row.perplexity, loss=row.loss, tokens=row.tokens, items=row.items,
        spikes_per_neuron=None if spent is None else spent * method.spent(timesteps), seconds=row.seconds,
        seconds_convert=round(seconds, 2), **beside,
    )  # fmt: skip
