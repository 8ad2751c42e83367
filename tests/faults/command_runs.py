"""Commands in processes of their own: forked from this one, which has imported everything, so that a run takes a second.

A run's result is compared by its tensors, its configuration and its figures, without what depends on the clock.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))
import folders

import fas.cli
from fas.pipeline import ablate, calibrate, compare, convert, tune  # noqa: F401  (imported before forking)

OF_THE_CLOCK = {
    "seconds",
    "seconds_convert",
    "seconds_of",
    "seconds_calibrate",
    "peak_memory_gib",
    "command",
    "memory_mib",
}
SHORT = ("--length", "16", "--eval-sequences", "4", "--batch-size", "2", "--device", "cpu")
STEPS = ("--stage1-steps", "3", "--calibration-sequences", "4")
STAGE2 = ("--align-steps", "1", "--global-steps", "1")


@dataclass(frozen=True)
class Case:
    """A command by name, without its --out."""

    name: str
    arguments: tuple[str, ...]
    resumes: bool = True
    """Whether the same command on a finished folder shows its result; else it refuses the folder."""

    def on(self, out: Path) -> list[str]:
        return [*self.arguments, "--out", str(out), "--quiet"]


@dataclass
class Ended:
    """How a run ended: its exit code (None: killed) and the lines that it printed to standard error."""

    code: int | None
    lines: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Whether it said one clear line, and nothing else."""
        return self.code == 2 and len(self.lines) == 1 and self.lines[0].startswith("fas: error: ")

    def __str__(self) -> str:
        return f"exit {self.code}: {' | '.join(self.lines)[-400:]}"


def cases(root: Path) -> dict[str, Case]:
    """The five commands on a tiny model, and what they read, in ``root``."""
    model, data = folders.save_ann(root / "ann"), folders.save_text(root / "text.txt")
    of_model = ("--model", model, "--data", data)
    made = Case("convert", ("convert", *of_model, "--levels", "4", "--timesteps", "2,4", *SHORT, *STEPS, *STAGE2))
    if (ended := run(made.on(root / "snn"), root)).code != 0:
        raise RuntimeError(f"the tiny model could not be converted: {ended}")
    snn, again = str(root / "snn"), ("--data", data, "--length", "16", "--batch-size", "2", "--device", "cpu")
    found = (
        made,
        Case(
            "calibrate",
            ("calibrate", snn, "--data", data, "--length", "16", "--timesteps", "3,6", "--device", "cpu",
             "--calibration-sequences", "4", *STAGE2),
            resumes=False,
        ),
        Case("tune", ("tune", snn, *again, "--timesteps", "4", "--steps", "3", "--eval-sequences", "4"), resumes=False),
        Case("compare", ("compare", *of_model, "--methods", "qcfs,spikezip,fas-sigma-delta", "--timesteps", "2,4",
                         "--levels", "4", *SHORT, *STEPS)),
        Case("ablate", ("ablate", *of_model, "--groups", "stages", "--seeds", "0", "--levels", "4", "--timesteps", "2",
                        *SHORT, *STEPS, *STAGE2)),
    )  # fmt: skip
    return {case.name: case for case in found}


def start(arguments: list[str], logs: Path) -> tuple[int, Path]:
    """Begin a command in a child of this process; its number, and the file with its standard error."""
    logs.mkdir(parents=True, exist_ok=True)
    said = logs / f"stderr-{time.monotonic_ns()}"
    child = os.fork()
    if child:
        return child, said
    code = 70  # only seen if the lines below fail
    try:
        os.setsid()  # so that a kill takes what it has started, too
        signal.alarm(600)
        for number, file in ((1, os.devnull), (2, str(said))):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stderr, sys.stdout = open(2, "w", closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["fas", *arguments]
        torch.set_num_threads(1)
        code = fas.cli.main(arguments)
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(child: int, said: Path) -> Ended:
    """Wait for a child of `start`."""
    _, status = os.waitpid(child, 0)
    lines = said.read_text(errors="replace").splitlines() if said.exists() else []
    return Ended(
        None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status), [line for line in lines if line]
    )


def run(arguments: list[str], logs: Path) -> Ended:
    """Begin a command and wait for its end."""
    return ended(*start(arguments, logs / "logs"))


def kill(child: int) -> None:
    """SIGKILL for a child and whatever it has started; nothing if it has ended."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # it has no session of its own yet
        os.kill(child, signal.SIGKILL)


def digest(out: Path) -> dict[str, str]:
    """What a result is: each of its files, but for what depends on the clock, by a hash."""
    found = {}
    for file in sorted(out.rglob("*")):
        name = str(file.relative_to(out))
        if not file.is_file() or file.suffix in (".html", ".svg", ".md", ".csv"):  # made of the JSON
            continue
        content = file.read_bytes()
        if file.suffix == ".json":
            content = json.dumps(_still(json.loads(content)), sort_keys=True).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def _still(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _still(each) for key, each in value.items() if key not in OF_THE_CLOCK}
    return [_still(each) for each in value] if isinstance(value, list) else value


def leftovers(out: Path) -> list[str]:
    """Files beside ``out`` and inside it that no finished command leaves."""
    beside = [file.name for file in out.parent.iterdir() if file.name != out.name and file.name != "logs"]
    inside = [
        str(file.relative_to(out)) for file in out.rglob("*") if file.suffix in (".new", ".gone", ".ahead", ".lock")
    ]
    return beside + inside


def fresh(place: Path) -> Path:
    """An empty folder, and the name of a result in it, the same in every trial."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place / "out"
