"""Files and folders appear whole or not at all, and each error of a disk is one sentence with a remedy."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fas.errors import CheckpointError
from fas.storage import cache_folder, remove_whole, whole_file, whole_folder, write_whole, writing

FULL = os.strerror(errno.ENOSPC)
AS_RAISED = [
    OSError(errno.ENOSPC, FULL),
    Exception(f"{FULL} (os error {errno.ENOSPC})"),  # tokenizers
    SafetensorError(f"Error while serializing: I/O error: {FULL} (os error {errno.ENOSPC})"),
]


def fail(file: Path, error: BaseException) -> None:
    """Write a part of ``file``, then fail."""
    file.write_text("half")
    raise error


@pytest.mark.parametrize("error", AS_RAISED, ids=["python", "tokenizers", "safetensors"])
def test_a_full_disk_is_one_sentence_whoever_meets_it(tmp_path: Path, error: Exception) -> None:
    said = r"No space left on device .* MiB are free .*; free some.*; stages are kept"
    with pytest.raises(CheckpointError, match=said), whole_folder(tmp_path / "out", "stages are kept") as staged:
        fail(staged / "part", error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "mend the permissions"),
        (errno.EROFS, "mend the permissions"),
        (errno.ENOTDIR, "in the way; choose another name"),
        (errno.ENAMETOOLONG, "choose a shorter one"),
        (errno.EIO, "a disk that can be written"),
    ],
)
def test_each_error_of_the_system_has_its_remedy(tmp_path: Path, number: int, remedy: str) -> None:
    with pytest.raises(CheckpointError, match=remedy), writing(tmp_path):
        raise OSError(number, os.strerror(number))


def test_what_is_no_error_of_the_system_passes_unchanged(tmp_path: Path) -> None:
    for error in (KeyError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)), whole_folder(tmp_path / "out") as staged:
            fail(staged / "part", error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    (tmp_path / "new" / "out.new").mkdir(parents=True)  # left by a process that was killed
    (tmp_path / "new" / "out.new" / "old").write_text("")
    with whole_folder(out) as staged:
        (staged / "part").write_text("whole")
        assert not out.exists()
    assert [file.name for file in out.iterdir()] == ["part"]
    assert not staged.exists()


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    file = write_whole(tmp_path / "file", "old")
    with pytest.raises(CheckpointError), whole_file(file) as beside:
        fail(beside, OSError(errno.ENOSPC, FULL))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


def test_a_folder_that_is_removed_is_gone_under_its_name_at_once(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "run.work"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    seen: list[bool] = []
    monkeypatch.setattr("fas.storage.shutil.rmtree", lambda place, **_: seen.append(folder.exists()))
    remove_whole(folder)
    assert seen[-1] is False
    remove_whole(folder)  # nothing is there


def test_without_a_home_and_a_name_the_cache_is_in_the_temporary_folder(tmp_path: Path, monkeypatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert cache_folder() == tmp_path / f"fas-{os.getuid()}"
