"""Files and folders that appear whole or not at all, and what a disk that refuses them means in one sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from fas.errors import CheckpointError, DiskError

_IN_RUST = re.compile(r"\(os error (\d+)\)")
"""How tokenizers and safetensors, written in Rust, name the error of the system inside an exception of their own."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_TEMPORARY = ".new"


@contextlib.contextmanager
def writing(place: Path, kept: str = "") -> Iterator[None]:
    """Raise one `DiskError` for whatever error of the system a library meets while it writes to ``place``.

    ``kept`` says what a failure does not cost. Errors that are not the system's pass unchanged.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        more = f"; {kept}" if kept else ""
        raise DiskError(f"{place} could not be written: {_reason(number, place)}{more}") from error


@contextlib.contextmanager
def whole_folder(out: Path, kept: str = "") -> Iterator[Path]:
    """A folder beside ``out`` to fill, which becomes ``out`` when the block ends, and is removed if the block fails.

    Raises `DiskError` as `writing` does.
    """
    staged = out.with_name(out.name + _TEMPORARY)
    shutil.rmtree(staged, ignore_errors=True)  # left by a process that was killed
    with writing(out, kept):
        try:
            staged.mkdir(parents=True)
            yield staged
            staged.rename(out)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


@contextlib.contextmanager
def whole_file(path: Path, kept: str = "") -> Iterator[Path]:
    """A file beside ``path`` to write, which replaces ``path`` when the block ends, and is removed if the block fails.

    Raises `DiskError` as `writing` does.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}"[-200:])
    with writing(path, kept):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            os.replace(beside, path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` so that a reader meets the old file or the new one, never a part."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return path


def remove_whole(folder: Path) -> None:
    """Remove ``folder`` so that a process killed meanwhile leaves nothing under its name."""
    gone = folder.with_name(f"{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def cache_folder() -> Path:
    """Where this user's compiled kernels and dequantised models lie: XDG_CACHE_HOME, else ~/.cache, else the system's temporary
    folder, for users without a home and for homes that cannot be written.

    Raises `PermissionError` if the folder in the temporary one is somebody else's, who could put programs there.
    """
    try:
        place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fas"
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return place
    except (OSError, RuntimeError):  # RuntimeError: no HOME and no entry in passwd
        owner = os.getuid() if hasattr(os, "getuid") else 0
        place = Path(tempfile.gettempdir()) / f"fas-{owner}"
        place.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and place.stat().st_uid != owner:
            raise PermissionError(f"{place} belongs to somebody else") from None
        return place


def _number(error: BaseException) -> int | None:
    """The system's number of an error, also of one that a library wrapped."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    found = _IN_RUST.search(str(error))
    if found:
        return int(found[1])
    if isinstance(error, SafetensorError):
        return errno.EIO
    return _number(error.__cause__) if error.__cause__ is not None else None


def _reason(number: int, place: Path) -> str:
    """What the system said, and the remedy."""
    said = os.strerror(number)
    if number in _FULL:
        return f"{said}{_free(place)}; free some, or choose a folder on another disk, and start the same command again"
    if number in _FORBIDDEN:
        return f"{said}; mend the permissions, or choose another folder"
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
        return f"{said}: a file or folder of another kind is in the way; choose another name"
    if number == errno.ENAMETOOLONG:
        return f"{said}; choose a shorter one"
    return f"{said}; choose a folder on a disk that can be written"


def _free(place: Path) -> str:
    """Free bytes on the disk of ``place``, in words, where they can be known."""
    for folder in (place, *place.parents):
        with contextlib.suppress(OSError):
            return f" ({shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free on the disk of {folder})"
    return ""
