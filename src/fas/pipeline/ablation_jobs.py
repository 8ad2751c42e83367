"""Runs tasks one after the other or in processes; a task that fails costs itself only, and says why."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from typing import Any, Protocol

import torch

from fas.errors import DiskError
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


class Workers:
    """Does jobs in this process or, if ``processes`` > 1, side by side in that many spawned ones of one torch thread each.

    A context manager: the processes live until its end. Where one is killed, what it and the others had not finished is tried
    again one at a time.
    """

    def __init__(self, processes: int, bench: Any, progress: Progress) -> None:
        self.processes, self.bench, self.progress = processes, bench, progress
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        self.others = active_children()
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: Any) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = None
        if kind is not None:  # interrupted: what is not finished would only be waited for
            for child in set(active_children()) - set(self.others):
                child.terminate()

    def run(self, what: str, jobs: Sequence[Any]) -> dict[Any, str]:
        """Do all ``jobs`` (each is a ``what``); why those that failed did."""
        if self.processes > 1 and jobs:
            return self._side_by_side(what, jobs)
        failures = {}
        for index, job in enumerate(jobs, 1):
            self.progress.note(f"{what} {index} of {len(jobs)}: {job.title}")
            reason = _attempt(job, self.bench, self.progress)
            if reason:
                failures[job] = reason
                self.progress.note(f"failed: {reason}")
        return failures

    def _side_by_side(self, what: str, jobs: Sequence[Any]) -> dict[Any, str]:
        self.progress.start(f"{what}s, {self.processes} at a time", len(jobs))
        failures: dict[Any, str] = {}
        left, processes = list(jobs), self.processes
        while left:
            finished = self._round(left, processes)
            failures |= {job: reason for job, reason in finished.items() if reason}
            left = [job for job in left if job not in finished]
            if left and processes > 1:
                self.progress.note(f"a process was killed, perhaps for memory; {len(left)} are tried one at a time")
                processes = 1
            elif left:  # in order: the first that is not finished is the one
                failures[left[0]] = KILLED
                self.progress.advance(1, left.pop(0).title)
        if processes < self.processes:
            self.__exit__()  # of one process; the next jobs get all again
        self.progress.done(f"{len(jobs) - len(failures)} of {len(jobs)} finished")
        return failures

    def _round(self, jobs: Sequence[Any], processes: int) -> dict[Any, str | None]:
        """Whatever was finished before a process was killed, if one was."""
        finished: dict[Any, str | None] = {}
        self.pool = self.pool or ProcessPoolExecutor(processes, get_context("spawn"), _begin)
        futures: dict[Future[str | None], Any] = {}
        try:
            futures = {self.pool.submit(_attempt, job, self.bench, None): job for job in jobs}
            for future in as_completed(futures):
                finished[futures[future]] = reason = future.result()
                self.progress.advance(1, futures[future].title)
                if reason:
                    self.progress.note(f"failed: {futures[future].title}: {reason}")
        except BrokenProcessPool:
            self.__exit__()
            done = [future for future in futures if future.done() and not future.cancelled() and not future.exception()]
            finished |= {futures[future]: future.result() for future in done}
        return finished


def _begin() -> None:
    """In a new process: one thread, no words of its own, and no life beyond its parent's (who may be killed, too)."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # Ctrl-C reaches all; the parent speaks
    warnings.simplefilter("ignore")  # the parent has said what there is to say
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _attempt(job: Any, bench: Any, progress: Progress | None) -> str | None:
    """Why it failed, in one sentence; None if it did not. Raises `DiskError`, which the other tasks would meet, too."""
    try:
        job.do(bench, progress or Silent())
    except DiskError:
        raise
    except Exception as error:  # any: the other tasks go on
        if os.environ.get("FAS_DEBUG") == "1":
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        return first if type(error).__module__.startswith("fas.") else f"{type(error).__name__}: {first}"
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # other processes want it
    return None
