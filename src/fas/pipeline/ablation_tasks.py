"""The tasks of an ablation: controls, Stage 1 models, cells. Each leaves its result on disk, whole or not at all."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache

from fas.pipeline.ablation_options import AblateOptions
from fas.pipeline.ablation_plan import Cell
from fas.pipeline.measure import EVALUATION_BATCH, dense_row, qcfs_row, spiking_row
from fas.pipeline.prepared import Prepared, prepared
from fas.pipeline.run import Run
from fas.pipeline.stages import kept_row, spiking_for, train_control, train_qcfs
from fas.pipeline.workspace import Workspace
from fas.progress import Progress
from fas.report.results import Row

CONTROL, QCFS = "row-control", "row-qcfs"


@lru_cache(maxsize=1)
def loaded(options: AblateOptions) -> Prepared:
    """Model and text, loaded once a process."""
    return prepared(options.conversion(options.seeds[0], options.levels, stage1=True))


@dataclass(frozen=True)
class Bench:
    """Where an ablation works: its options, and what guards its folder (not the seeds, groups or cells: more may come)."""

    options: AblateOptions
    fingerprint: str

    @classmethod
    def of(cls, options: AblateOptions) -> Bench:
        """Load model and text; raises `FasError` kinds for what cannot be ablated."""
        apart = {
            "seed": None,
            "levels": None,
            "timesteps": None,
            "fit_steps": None,
            "align_steps": None,
            "global_steps": None,
        }
        base = options.conversion(options.seeds[0], options.levels, stage1=True)
        return cls(options, loaded(options).fingerprint(base, **apart))

    @property
    def top(self) -> Workspace:
        """The folder of all stages, ``ablation.work`` in ``out``; raises `CheckpointError` if another ablation's is there."""
        return Workspace(self.options.out / "ablation", self.fingerprint)

    def workspace(self, name: str) -> Workspace:
        return Workspace(self.top.path(name), self.fingerprint)

    def run(self, seed: int, levels: int, stage1: bool, workspace: Workspace, progress: Progress) -> Run:
        return loaded(self.options).run(self.options.conversion(seed, levels, stage1), workspace, progress)


@dataclass(frozen=True)
class Control:
    """The control of one seed; all else of the seed is compared with it."""

    seed: int

    @property
    def title(self) -> str:
        return f"seed {self.seed}: control"

    def workspace(self, bench: Bench) -> Workspace:
        return bench.workspace(f"seed-{self.seed}")

    def row(self, bench: Bench) -> Row | None:
        """What was measured, if it was."""
        return _read(self.workspace(bench), CONTROL)

    def do(self, bench: Bench, progress: Progress) -> None:
        workspace = self.workspace(bench)
        run = bench.run(self.seed, bench.options.levels, True, workspace, progress)
        train_control(run, loaded(bench.options).ann)

        def measure() -> Row:
            return dense_row("control", run.load("control"), run.evaluation, EVALUATION_BATCH, progress)

        kept_row(workspace, CONTROL, measure)


@dataclass(frozen=True)
class Network:
    """The QCFS model of one seed and L, after Stage 1 or training-free."""

    seed: int
    levels: int
    stage1: bool

    @property
    def title(self) -> str:
        return f"seed {self.seed}, L = {self.levels}: {'Stage 1' if self.stage1 else 'training-free'}"

    def workspace(self, bench: Bench) -> Workspace:
        return bench.workspace(f"seed-{self.seed}-L{self.levels}-{'full' if self.stage1 else 'none'}")

    def run(self, bench: Bench, progress: Progress) -> Run:
        return bench.run(self.seed, self.levels, self.stage1, self.workspace(bench), progress)

    def row(self, bench: Bench) -> Row | None:
        """What was measured, if it was."""
        return _read(self.workspace(bench), QCFS)

    def do(self, bench: Bench, progress: Progress) -> None:
        run = self.run(bench, progress)
        decision = Control(self.seed).workspace(bench).read_json("control-decision")
        train_qcfs(run, loaded(bench.options).ann, decision)
        kept_row(
            run.workspace, QCFS, lambda: qcfs_row(run.load("qcfs"), run.evaluation, EVALUATION_BATCH, run.progress)
        )


@dataclass(frozen=True)
class Measurement:
    """One cell of one seed: Stage 2, if there is one, and the SNN's quality and spikes."""

    seed: int
    cell: Cell

    @property
    def network(self) -> Network:
        return Network(self.seed, self.cell.target.levels, self.cell.stage1)

    @property
    def title(self) -> str:
        target, stage2 = self.cell.target, "" if self.cell.stage2 else ", no Stage 2"
        return f"{self.network.title}: {target.coding} T={target.timesteps}{stage2}"

    def workspace(self, bench: Bench) -> Workspace:
        return self.network.workspace(bench)

    def row(self, bench: Bench) -> Row | None:
        """What was measured, if it was."""
        return _read(self.workspace(bench), self.cell.key)

    def do(self, bench: Bench, progress: Progress) -> None:
        cell, run, start = self.cell, self.network.run(bench, progress), time.time()
        if cell.stage2 is not None:
            run.options = replace(run.options, calibration_sequences=cell.sequences)

        with spiking_for(run, cell.target, cell.stage2, cell.key) as (model, _):

            def measure() -> Row:
                row = spiking_row(model, cell.target, run.evaluation, EVALUATION_BATCH, progress)
                return replace(row, seconds=round(time.time() - start, 2))

            kept_row(run.workspace, cell.key, measure)


Task = Control | Network | Measurement


def _read(workspace: Workspace, stage: str) -> Row | None:
    return Row(**workspace.read_json(stage)) if workspace.has(stage) else None
