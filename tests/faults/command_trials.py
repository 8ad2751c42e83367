"""Kills, full disks and pairs of commands: each trial is right, or says in words how it was wrong."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from command_runs import Case, Ended, cases, digest, ended, fresh, kill, leftovers, run, start


@dataclass
class Bench:
    """The commands, how long each takes undisturbed, and what it makes."""

    root: Path
    cases: dict[str, Case]
    seconds: dict[str, float]
    expected: dict[str, dict[str, str]]
    room: dict[str, int]
    """Bytes of a finished folder, and as much again for what is staged beside it."""

    @classmethod
    def of(cls, root: Path, names: tuple[str, ...] = ("convert", "calibrate", "tune", "compare", "ablate")) -> Bench:
        bench = cls(root, cases(root), {}, {}, {})
        for name in names:
            begun, out = time.monotonic(), bench.fresh()
            if (whole := run(bench.cases[name].on(out), root)).code != 0:
                raise RuntimeError(f"{name} fails undisturbed: {whole}")
            bench.seconds[name], bench.expected[name] = time.monotonic() - begun, digest(out)
            bench.room[name] = 2 * sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        return bench

    def fresh(self) -> Path:
        return fresh(self.root / "trial")

    def wrong_at_the_end(self, case: Case, out: Path, last: Ended) -> str | None:
        """What is wrong with a finished result and with what lies beside it; None if nothing is."""
        if last.code != 0:
            return f"ended with {last}"
        if not out.exists() or digest(out) != self.expected[case.name]:
            return "another result than undisturbed"
        left = leftovers(out)
        return f"left {', '.join(left)}" if left else None


def killed(bench: Bench, name: str, drawn: random.Random) -> str | None:
    """SIGKILL at a moment, then the same command to its end."""
    case, out = bench.cases[name], bench.fresh()
    child, said = start(case.on(out), bench.root / "logs")
    time.sleep(drawn.uniform(0, bench.seconds[name]))
    kill(child)
    first = ended(child, said)
    if first.code == 0:  # it was faster this time
        return bench.wrong_at_the_end(case, out, first)
    last = run(case.on(out), bench.root)
    if out.exists() and last.refused and not case.resumes:  # killed behind the last rename
        last = Ended(0)
    return bench.wrong_at_the_end(case, out, last)


def on_a_full_disk(bench: Bench, name: str, share: float) -> str | None:
    """The command on a disk of a share of what it needs, then with room; needs the right to mount."""
    case, out = bench.cases[name], bench.fresh()
    disk = out.parent
    size = max(8, int(bench.room[name] * share) // 1024)
    _mount(disk, f"size={size}k")
    try:
        first = run(case.on(out), bench.root)
        if first.code != 0:
            if not first.refused:
                return f"{size} KiB: {first}"
            if half := [name for name in leftovers(out) if name.endswith((".new", ".lock"))]:
                return f"{size} KiB: left {', '.join(half)}"
            if out.exists() and case.name not in ("ablate", "compare"):  # whose folders grow cell by cell
                return f"{size} KiB: a half folder"
            _mount(disk, f"remount,size={64 * 2**10}k")
            first = run(case.on(out), bench.root)
        return bench.wrong_at_the_end(case, out, first)
    finally:
        subprocess.run(["umount", str(disk)], check=False, capture_output=True)


def _mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True, capture_output=True)


def may_mount(place: Path) -> bool:
    """Whether disks of any size can be had here."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        _mount(place, "size=64k")
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(place)], check=True)
    return True


def in_pairs(bench: Bench, name: str, delay: float, change: str = "") -> str | None:
    """Two commands on one folder, the second ``delay`` seconds later: the same, one of other arguments (``seed``), or one
    that comes when the first has just been killed (``kill``)."""
    case, out = bench.cases[name], bench.fresh()
    first = start(case.on(out), bench.root / "logs")
    time.sleep(delay)
    if change == "kill":
        kill(first[0])
    second = start([*case.on(out), *(("--seed", "1") if change == "seed" else ())], bench.root / "logs")
    both = [ended(*first), ended(*second)]
    if change == "kill":
        both = both[1:] if both[0].code is None else both
    for each in both:
        if each.code != 0 and not each.refused:
            return str(each)
    if not any(each.code == 0 for each in both) and not out.exists():
        return "both were refused: " + " / ".join(map(str, both))
    if change == "seed" and digest(out) != bench.expected[name]:  # the other one was first
        return None if both[1].code == 0 and not leftovers(out) else "neither's result"
    return bench.wrong_at_the_end(case, out, Ended(0))


def trials(bench: Bench, part: str, count: int, seed: int = 0) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """``count`` trials of a part, by name."""
    drawn, names = random.Random(seed), list(bench.expected)
    for number in range(count):
        name = names[number % len(names)]
        if part == "kills":
            yield f"{name} {number}", lambda name=name: killed(bench, name, drawn)
        elif part == "disk_full":
            share = 1.1 * (number // len(names) + drawn.random()) / max(1, count // len(names))
            yield f"{name} {share:.2f}", lambda name=name, share=share: on_a_full_disk(bench, name, share)
        else:
            change = ("", "seed", "kill", "")[number // len(names) % 4]
            delay = drawn.uniform(0, bench.seconds[name]) if change or number % 2 else 0.0
            yield f"{name} {change or 'same'} {delay:.1f} s", lambda n=name, d=delay, c=change: in_pairs(bench, n, d, c)


def counted(bench: Bench, part: str, count: int, seed: int = 0) -> dict[str, object]:
    """How many trials went wrong, and which."""
    begun, wrong = time.monotonic(), {}
    for name, trial in trials(bench, part, count, seed):
        shutil.rmtree(bench.root / "logs", ignore_errors=True)
        if (how := trial()) is not None:
            wrong[name] = how
            print(f"{part}, {name}: {how}", flush=True)
    return {"cases": count, "wrong": len(wrong), "which": wrong, "seconds": round(time.monotonic() - begun, 1)}
