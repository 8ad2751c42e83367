"""Locks: one command at a time writes a folder; the next one is refused and told who does."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from fas import world
from fas.errors import CheckpointError
from fas.storage import writing

Run = TypeVar("Run", bound=Callable[..., Any])
_LONGEST = 120
"""Characters of a command that are shown."""


@contextlib.contextmanager
def owned(out: Path, wait: bool = False) -> Iterator[None]:
    """The right to write ``out``, and what lies beside it, while the block runs.

    The system holds the lock for the process and ends it with the process, so a killed command leaves none. The file
    ``.NAME.lock`` beside ``out`` names the owner and is removed at the end. Of several processes under torchrun the first
    one holds it. Raises `CheckpointError` if another process, or another call of this one, owns ``out`` (with ``wait`` its end
    is waited for), or if nothing can be written there.
    """
    if world.launched()[0] > 0:
        yield
        return
    from filelock import FileLock, Timeout  # here, for it takes a while

    out = Path(out).absolute()
    made = _missing(out.parent)
    file = out.with_name(f".{out.name}.lock")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, thread_local=False)
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            raise CheckpointError(_refusal(out, file)) from None
    try:
        with writing(out):
            file.write_text(json.dumps(_owner()), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()  # while it is still held: whoever opened it before sees that it is gone, and tries again
        lock.release()
        for folder in made:
            with contextlib.suppress(OSError):  # the block wrote something there
                folder.rmdir()


def one_at_a_time(out_of: Callable[[Any], Path]) -> Callable[[Run], Run]:
    """Decorator of what takes options first and writes the folder that ``out_of`` finds in them."""

    def decorate(run: Run) -> Run:
        @functools.wraps(run)
        def alone(options: Any, *args: Any, **named: Any) -> Any:
            with owned(out_of(options)):
                return run(options, *args, **named)

        return cast("Run", alone)

    return decorate


def _owner() -> dict[str, Any]:
    command = shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]]) if sys.argv else "python"
    return {
        "command": command if len(command) <= _LONGEST else command[:_LONGEST] + " …",
        "pid": os.getpid(),
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _refusal(out: Path, file: Path) -> str:
    owner = "another command"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it may be writing its name just now
        found = json.loads(file.read_text(encoding="utf-8"))
        owner = (
            f"another command ({found['command']}; process {found['pid']} on {found['host']}, since {found['since']})"
        )
    return f"{out} is being written by {owner}; wait for its end, or choose another --out"


def _missing(folder: Path) -> list[Path]:
    """Folders that have to be made for ``folder`` to exist, innermost first."""
    found = []
    while not folder.exists() and folder != folder.parent:
        found.append(folder)
        folder = folder.parent
    return found
