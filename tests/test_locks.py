"""One command at a time writes a folder; the other one is told who does, and a killed one stands in nobody's way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fas.errors import CheckpointError
from fas.locks import one_at_a_time, owned

HOLD = """
import sys, time
from pathlib import Path
from fas.locks import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(out: Path) -> subprocess.Popen[str]:
    """Another process that owns ``out``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_with_the_name_of_the_first_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "out"
    process = holder(out)
    try:
        with (
            pytest.raises(CheckpointError, match=f"out is being written by another command .*process {process.pid} on"),
            owned(out),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with owned(out):
            assert (tmp_path / "runs").exists()
    finally:
        process.kill()
        process.wait()
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_is_owned_by_one_call_of_many(tmp_path: Path) -> None:
    inside, refused, worst = [], [], []

    def run() -> None:
        for _ in range(200):
            try:
                with owned(tmp_path / "out"):
                    inside.append(1)
                    worst.append(len(inside))
                    inside.pop()
            except CheckpointError:
                refused.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(worst) == 1
    assert len(worst) + len(refused) == 800
    assert list(tmp_path.iterdir()) == []


def test_who_waits_comes_in_when_the_owner_ends(tmp_path: Path) -> None:
    process = holder(tmp_path / "out")
    threading.Timer(0.5, process.kill).start()
    begun = time.monotonic()
    with owned(tmp_path / "out", wait=True):
        assert time.monotonic() - begun > 0.4
    process.wait()


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    called = []

    @one_at_a_time(lambda out: out)
    def run(out: Path) -> None:
        called.append(out)

    with pytest.raises(CheckpointError, match="in the way; choose another name"):
        run(tmp_path / "file" / "out")
    assert called == []


def test_results_of_the_block_stay(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "out"
    with owned(out):
        out.mkdir()
    assert out.exists()
    assert os.listdir(out.parent) == ["out"]
