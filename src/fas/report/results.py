"""The one shape of every result: what ``fas convert``, ``fas eval``, ``fas demo`` and the benchmarks write as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fas import __version__, world
from fas.errors import FasError
from fas.storage import write_whole

_DISTRIBUTIONS = ("torch", "transformers", "numpy")


@dataclass
class Row:
    """One measured model. A field that does not apply is None and is left out of the JSON."""

    name: str
    """``ann``, ``ann+prefix`` (the ANN with the prefix of the SNN), ``control``, ``qcfs`` or ``snn``."""
    task: str | None = None
    """What it was measured at, where that is no language modelling."""
    coding: str | None = None
    rows: str | None = None
    """rate only: ``mean`` or ``step``."""
    coverage: str | None = None
    schedule: str | None = None
    """``synchronous`` or ``layerwise``."""
    neurons_per_channel: int | None = None
    """sigma_delta, or of a comparison: how many neurons encode a channel together."""
    steps: list[int] | None = None
    """sigma_delta only: what a spike of each timestep (and neuron of a channel) is worth."""
    steps_by_site: dict[str, list[int]] | None = None
    """sigma_delta after Stage 2: the schedule that each site was given."""
    timesteps: int | None = None
    settled: bool | None = None
    """Adaptive T: whether a sequence stopped when nothing would fire any more."""
    confidence: float | None = None
    """Adaptive T: the mean largest probability at which a sequence stopped."""
    mean_timesteps: float | None = None
    """Adaptive T: after how many of ``timesteps`` a sequence stopped, on average."""
    stopped_early: float | None = None
    """Adaptive T: the share of sequences that stopped before T."""
    levels: int | None = None
    stage2: bool | None = None
    """Whether the neurons were calibrated by Stage 2."""
    tuned: bool | None = None
    """Whether the weights were then trained through simulated time (``fas tune``); the paper freezes them."""
    metric: str | None = None
    """What ``value`` is: ``perplexity``, ``accuracy``, ``f1``, …"""
    value: float | None = None
    metrics: dict[str, float] | None = None
    """All metrics of the task by name, where it has others than the perplexity."""
    stderr: float | None = None
    """Standard error of ``value``, where it is known."""
    items: int | None = None
    """Questions, texts or documents that the metric was measured on."""
    truncated: int | None = None
    """Items that were longer than the context and lost what stood left of it."""
    perplexity: float | None = None
    loss: float | None = None
    """Nats per token."""
    spikes_per_neuron: float | None = None
    """Non-zero spikes over all timesteps, per neuron = site channel × real token, all sites pooled."""
    model: str | None = None
    """Which model, where the results hold several."""
    budget: float | None = None
    """Spikes per neuron that Stage 1 was allowed."""
    energy_strict_pj: float | None = None
    """Of the whole spiking network, a token, by the ledger's fp32 proxy."""
    energy_ann_pj: float | None = None
    """Of the ANN in fp32, counted in the same run."""
    energies: dict[str, float] | None = None
    """Of a comparison: strict energy by ledger column, times what that column compares with (docs/energy.md)."""
    analog: dict[str, float] | None = None
    """Of a comparison: ``macs``, the share of multiply-accumulates that stay; ``functions``, exponentials, roots and divisions
    that are evaluated over all T for each of the ANN's."""
    memory_mib: float | None = None
    """Of a comparison: weights and what is alive at once in a forward of one calibration batch, in simulation."""
    tokens: int | None = None
    """Predicted tokens that the metric was measured on."""
    stored: bool | None = None
    """Whether the row was measured when the model was converted, not now."""
    seconds: float | None = None
    by_site: dict[str, float] | None = None
    """Spikes per neuron of each site."""
    group: str | None = None
    """Of an ablation: what the variant is compared with."""
    variant: str | None = None
    """Of an ablation: its name within the group."""
    seed: int | None = None
    """Where the results hold several."""
    stage1: bool | None = None
    """Of an ablation: whether Stage 1 was trained."""
    method: str | None = None
    """Of a comparison: the conversion's name (`fas.methods`)."""
    latency_timesteps: int | None = None
    """Of a comparison: timesteps until the network has answered; where layers wait for each other, T for each."""
    seconds_convert: float | None = None
    """Of a comparison: from the loaded model to the SNN, without Stage 1."""
    error: str | None = None
    """Why there is no value."""


@dataclass
class Results:
    """Rows and where they come from. ``extra`` holds what has no fixed place: timings, decisions, text ``samples``."""

    model: str
    data: str
    seed: int
    rows: list[Row] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    command: str = field(default_factory=lambda: this_command())
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: None is left out, a number that is not finite becomes ``"inf"`` or ``"nan"``."""
        head = {name: getattr(self, name) for name in ("model", "data", "seed", "versions", "command")}
        rows = [{key: value for key, value in vars(row).items() if value is not None} for row in self.rows]
        return _for_json(head | {"rows": rows} | ({"extra": self.extra} if self.extra else {}))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Results:
        """Read back what `to_dict` gave; raises `FasError` for anything else."""
        try:
            _refuse_unknown(values, {f.name for f in fields(cls)})
            return cls(
                model=str(values["model"]),
                data=str(values["data"]),
                seed=int(values["seed"]),
                rows=[_row(entry) for entry in values["rows"]],
                versions=dict(values["versions"]),
                command=str(values["command"]),
                extra=dict(values.get("extra", {})),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise FasError(f"not in the shape of FAS results ({type(error).__name__}: {error})") from None

    def write(self, path: Path | str) -> Path:
        """Write JSON to ``path`` whole or not at all: beside it first, then renamed."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        return write_whole(Path(path), text)

    @classmethod
    def read(cls, path: Path | str) -> Results:
        """Read a file that `write` made; raises `FasError` if it is not one."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, FasError) as error:
            raise FasError(f"{path} cannot be read as results: {error}") from None


def versions() -> dict[str, str]:
    """Versions of everything that a figure may depend on."""
    found = {"fas": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def this_command() -> str:
    """The running command as one would type it."""
    program = Path(sys.argv[0])
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.parent if spec is not None and program.name == "__main__.py" else None
    name = f"-m {module}" if module else program.name
    if world.launched()[1] > 1:
        name = f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', '1')} {name}"
    elif module or not name:
        name = f"python {name}".strip()
    return " ".join([name, shlex.join(sys.argv[1:])]).strip()


def _row(values: dict[str, Any]) -> Row:
    _refuse_unknown(values, {f.name for f in fields(Row)})
    numbers = ("value", "perplexity", "loss", "spikes_per_neuron", "budget", "energy_strict_pj", "energy_ann_pj",
               "confidence", "mean_timesteps", "stopped_early", "stderr", "seconds_convert", "memory_mib")  # fmt: skip
    read: dict[str, Any] = {
        key: float(value) if key in numbers and value is not None else value for key, value in values.items()
    }
    return Row(**read)


def _refuse_unknown(values: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        raise FasError(f"unknown entry {unknown[0]!r}; was it written by a newer FAS? upgrade fas-snn")


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _for_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
