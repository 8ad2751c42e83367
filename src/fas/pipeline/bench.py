"""``fas bench``: how fast spiking models run beside the ANN, a naive simulation and SpikingJelly, all in one run, as ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch

from fas.config import CacheKind
from fas.errors import ConfigError
from fas.progress import Progress, Silent

What = Literal["neuron", "prefill", "decode", "decode_relu", "stage1_step", "stage2"]
WHATS: tuple[What, ...] = ("neuron", "prefill", "decode", "decode_relu", "stage1_step", "stage2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class BenchOptions:
    """What is timed. Raises `ConfigError` for contradictions."""

    model: str | None = None
    """Hub id or folder; None: a GPT-2 small with random weights (124 M)."""
    what: tuple[str, ...] = WHATS
    coverages: tuple[str, ...] = ("ffn", "linear")
    codings: tuple[str, ...] = ("sigma_delta",)
    timesteps: tuple[int, ...] = (4, 8)
    dtypes: tuple[str, ...] = ("float32",)
    levels: int = 8
    length: int = 128
    """Tokens of the prompt."""
    rounds: int = 7
    integer_bits: int | None = None
    """Of the weights that spikes are multiplied with (`fas.accelerated`): 0 as they are; None: 16 in fp32, 8 in bfloat16."""
    threads: int | None = None
    device: str = "cpu"
    seed: int = 0
    caches: tuple[str, ...] = ("exact",)
    """In decoding: ``exact``, ``settled``."""

    def __post_init__(self) -> None:
        given = (
            ("what", self.what, WHATS),
            ("dtype", self.dtypes, tuple(DTYPES)),
            ("cache", self.caches, get_args(CacheKind)),
        )
        for name, values, known in given:
            if wrong := [value for value in values if value not in known]:
                raise ConfigError(f"{name}={wrong[0]!r} is not valid: choose of {', '.join(known)}")
        if self.rounds < 1 or self.length < 2 or min(self.timesteps, default=0) < 1:
            raise ConfigError("rounds and timesteps must be at least 1, and length at least 2")
        if self.integer_bits not in (None, 0, 8, 16, 24):
            raise ConfigError(f"integer_bits={self.integer_bits} is not valid: choose 0, 8, 16 or 24")

    def bits(self, dtype: str) -> int:
        """Of the weights of a model in ``dtype``."""
        return {"float32": 16, "bfloat16": 8}[dtype] if self.integer_bits is None else self.integer_bits


@dataclass(frozen=True)
class Case:
    """Two things to time against each other; each is called as it is, and may prepare something untimed before."""

    what: str
    against: str
    """``ann``, ``naive``, ``spikingjelly``, ``copy``, ``published``."""
    ours: Callable[[], Any]
    other: Callable[[], Any]
    dtype: str = "float32"
    coverage: str | None = None
    coding: str | None = None
    schedule: str | None = None
    timesteps: int | None = None
    before: Callable[[], Any] | None = None
    """Called before each timing, untimed."""
    model: str | None = None
    """Which one, where it is not neurons alone."""
    cache: str | None = None
    """Of the spiking side, in decoding."""


@dataclass
class BenchRow:
    """The ratio of ours to what it stands against: median, least and largest of the rounds."""

    what: str
    coverage: str | None
    coding: str | None
    schedule: str | None
    timesteps: int | None
    dtype: str
    against: str
    ratio: float
    ratio_min: float
    ratio_max: float
    milliseconds: float
    """Ours, median."""
    milliseconds_against: float
    model: str | None = None
    cache: str | None = None


@dataclass
class BenchResults:
    """Rows, and the circumstances: model, threads, precision of products, versions, command."""

    rows: list[BenchRow]
    about: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self.about | {"rows": [asdict(row) for row in self.rows]}


def run_bench(options: BenchOptions, progress: Progress | None = None) -> BenchResults:
    """Time all that ``options`` ask for; raises `FasError` kinds for what cannot be loaded or converted."""
    from fas.pipeline.bench_cases import circumstances, model_cases
    from fas.pipeline.bench_neurons import neuron_cases
    from fas.pipeline.load import pick_device

    progress, before = progress or Silent(), torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    try:
        # neurons alone with the system's memory as other programs have it, models with memory that is kept
        rows = [timed(case, options.rounds, progress) for case in neuron_cases(options, progress)]
        pick_device(options.device)
        about: dict[str, Any] = {}
        rows += [timed(case, options.rounds, progress) for case in model_cases(options, about)]
        return BenchResults(rows, circumstances(options) | about)
    finally:
        torch.set_num_threads(before)


def timed(case: Case, rounds: int, progress: Progress) -> BenchRow:
    """Both sides in each round, in turns first; a ratio is of one round."""
    _pair(case, swapped=False)  # warms both up
    pairs = [_pair(case, swapped=bool(number % 2)) for number in range(rounds)]
    ratios = [ours / other for ours, other in pairs]
    seconds = [statistics.median(side) for side in zip(*pairs, strict=True)]
    row = BenchRow(
        case.what, case.coverage, case.coding, case.schedule, case.timesteps, case.dtype, case.against,
        statistics.median(ratios), min(ratios), max(ratios), *(1e3 * side for side in seconds), model=case.model,
        cache=case.cache,
    )  # fmt: skip
    progress.note(f"{words_of(row)}: ×{row.ratio:.2f} of {row.against} ({row.ratio_min:.2f}–{row.ratio_max:.2f})")
    return row


def words_of(row: BenchRow) -> str:
    """What was timed."""
    time_of = f"T = {row.timesteps}" if row.timesteps and row.schedule != "layerwise" else None
    cache = "settled cache" if row.cache == "settled" else None
    parts = (row.what.replace("_", " "), row.coverage, row.coding, row.schedule, time_of, cache, row.dtype)
    return ", ".join(str(part) for part in parts if part)


def _pair(case: Case, swapped: bool) -> tuple[float, float]:
    sides = [case.other, case.ours] if swapped else [case.ours, case.other]
    seconds = list(_seconds(sides, case.before))
    return (seconds[1], seconds[0]) if swapped else (seconds[0], seconds[1])


def _seconds(sides: Sequence[Callable[[], Any]], before: Callable[[], Any] | None) -> Iterator[float]:
    for side in sides:
        if before is not None:
            before()
        _wait()
        start = time.perf_counter()
        side()
        _wait()
        yield time.perf_counter() - start


def _wait() -> None:
    """For a GPU that is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
