"""What ``fas ablate`` is asked to do: one frozen, validated description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fas.config import USUAL_LEVELS, USUAL_TIMESTEPS, Coverage
from fas.errors import ConfigError
from fas.pipeline.options import ConvertOptions


@dataclass(frozen=True)
class AblateOptions:
    """The base of all variants, the groups and the seeds. Raises `ConfigError` in one sentence for bad values."""

    model: str
    data: str
    out: Path
    eval_data: str | None = None
    coverage: Coverage = "linear"
    levels: int = USUAL_LEVELS
    timesteps: int = USUAL_TIMESTEPS
    seeds: tuple[int, ...] = (0, 1, 2)
    groups: tuple[str, ...] = ()
    """By name; () is all of them."""
    grid_levels: tuple[int, ...] = (3, 4, 8, 15)
    grid_timesteps: tuple[int, ...] = (2, 3, 4, 8)
    stage1_steps: int | None = None
    lr: float | None = None
    length: int | None = None
    batch_size: int = 8
    calibration_sequences: int = 32
    eval_sequences: int | None = None
    fit_steps: int = 32
    align_steps: int = 16
    global_steps: int = 16
    jobs: int = 1
    """Processes that work side by side."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {list(self.seeds)} are not valid: give at least one, and each once, e.g. 0,1,2")
        for name in ("grid_levels", "grid_timesteps"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} {list(values)} are not valid: give at least one, and each once, e.g. 3,4,8")
        if self.jobs < 1:
            raise ConfigError(f"jobs={self.jobs} is not valid: it must be at least 1")
        for seed in self.seeds:
            self.conversion(seed, self.levels, stage1=True)  # validates the rest

    def conversion(self, seed: int, levels: int, stage1: bool) -> ConvertOptions:
        """The conversion whose control and Stage 1 are those of these cells."""
        return ConvertOptions(
            model=self.model,
            data=self.data,
            out=self.out,
            eval_data=self.eval_data,
            coverage=self.coverage,
            levels=levels,
            timesteps=(self.timesteps,),
            stage1="full" if stage1 else "none",
            stage1_steps=self.stage1_steps,
            batch_size=self.batch_size,
            length=self.length,
            lr=self.lr,
            calibration_sequences=self.calibration_sequences,
            fit_steps=self.fit_steps,
            align_steps=self.align_steps,
            global_steps=self.global_steps,
            eval_sequences=self.eval_sequences,
            seed=seed,
            device=self.device,
        )
