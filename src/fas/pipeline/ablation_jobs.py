"""Runs tasks one after the other or in processes; a task that fails costs itself only, and says why."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, Protocol

import torch

from fas.progress import Progress, Silent

KILLED = "its process was killed, perhaps for memory; fewer --jobs need less"


class Job(Protocol):
    """Something to do; hashable and picklable."""

    @property
    def title(self) -> str:
        """What it is, for people."""
        ...

    def do(self, bench: Any, progress: Progress) -> None:
        """Do it; ``bench`` is what all jobs share."""


def run_jobs(what: str, jobs: Sequence[Any], bench: Any, processes: int, progress: Progress) -> dict[Any, str]:
    """Do all ``jobs``, ``processes`` side by side, and return why those that failed did.

    Processes are spawned, with one torch thread each if there are several. Where one is killed, what it and the others had
    not finished is tried again one at a time.
    """
    if not jobs:
        return {}
    if processes > 1:
        return _in_processes(what, jobs, bench, processes, progress)
    failures = {}
    for index, job in enumerate(jobs, 1):
        progress.note(f"{what} {index} of {len(jobs)}: {job.title}")
        reason = _attempt(job, bench, progress)
        if reason:
            failures[job] = reason
            progress.note(f"failed: {reason}")
    return failures


def _in_processes(what: str, jobs: Sequence[Any], bench: Any, processes: int, progress: Progress) -> dict[Any, str]:
    progress.start(f"{what}s, {processes} at a time", len(jobs))
    failures: dict[Any, str] = {}
    left = list(jobs)
    while left:
        finished = _round(left, bench, processes, progress)
        failures |= {job: reason for job, reason in finished.items() if reason}
        left = [job for job in left if job not in finished]
        if left and processes > 1:
            progress.note(f"a process was killed, perhaps for memory; {len(left)} tasks are tried one at a time")
            processes = 1
        elif left:  # in order: the first that is not finished is the one
            failures[left[0]] = KILLED
            progress.advance(1, left.pop(0).title)
    progress.done(f"{len(jobs) - len(failures)} of {len(jobs)} finished")
    return failures


def _round(jobs: Sequence[Any], bench: Any, processes: int, progress: Progress) -> dict[Any, str | None]:
    """Whatever was finished before a process was killed, if one was."""
    finished: dict[Any, str | None] = {}
    pool = ProcessPoolExecutor(min(processes, len(jobs)), get_context("spawn"), _begin)
    try:
        futures: dict[Future[str | None], Any] = {pool.submit(_attempt, job, bench, None): job for job in jobs}
        for future in as_completed(futures):
            job = futures[future]
            try:
                finished[job] = reason = future.result()
            except BrokenProcessPool:
                continue
            if reason:
                progress.note(f"failed: {job.title}: {reason}")
            progress.advance(1, job.title)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return finished


def _begin() -> None:
    """In a new process: one thread, no words of its own, and no life beyond its parent's (who may be killed, too)."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the parent has said what there is to say
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _attempt(job: Any, bench: Any, progress: Progress | None) -> str | None:
    """Why it failed, in one sentence; None if it did not."""
    try:
        job.do(bench, progress or Silent())
    except Exception as error:  # any: the other tasks go on
        if os.environ.get("FAS_DEBUG") == "1":
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        return first if type(error).__module__.startswith("fas.") else f"{type(error).__name__}: {first}"
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # other processes want it
    return None
