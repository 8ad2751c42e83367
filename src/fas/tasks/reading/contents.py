"""The text of one file, whole: decompressed, decoded, and refused in one sentence where it is not what its name says."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import stat
import zlib
from pathlib import Path

from fas.errors import DataError
from fas.tasks.reading.journal import Reading
from fas.tasks.reading.names import PACKED, is_archive, shown

LARGE = 1 << 27
"""Bytes of a file whose reading is said before it begins: it may take seconds."""
TIMES = 8
"""How much larger a compressed file usually becomes."""
MOST_TIMES, BOMB = 200, 1 << 28
"""How much larger a compressed file may become, and from how many bytes on that counts."""
_OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_CHUNK = 1 << 24
_NO_FILES = ("/dev/", "/proc/", "/sys/")
_POINTER = b"version https://git-lfs.github.com/spec/"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_MAGIC = {
    b"\x1f\x8b": "compressed by gzip", b"BZh": "compressed by bzip2", b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd", b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive", b"%PDF-": "a PDF document", b"PAR1": "a Parquet table", b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}  # fmt: skip
"""First bytes of what is no text."""


def kind_of(place: str | Path) -> str | None:
    """``file`` or ``folder``; None: there is nothing of that name. Raises `DataError` for what cannot be looked at."""
    try:
        mode = os.stat(place).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return None
        raise DataError(f"{shown(place)} cannot be read: {error.strerror}") from None
    return "folder" if stat.S_ISDIR(mode) else "file"


def checked(path: Path) -> int:
    """The size of the regular file ``path``; raises `DataError` for anything else, and what does not fit into memory."""
    try:
        found = path.stat()
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{shown(path)} cannot be read: {reason}") from None
    if not stat.S_ISREG(found.st_mode) or real.startswith(_NO_FILES):
        raise DataError(
            f"{shown(path)} is no regular file but a pipe, a device or the like; write its text into a file"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if found.st_size > memory:
        raise DataError(
            f"{shown(path)} has {found.st_size / 1e9:,.1f} GB, more than this machine's memory; give a part of it"
        )
    return found.st_size


def refuse_archive(path: Path) -> None:
    """Raise `DataError` for an archive, by its name."""
    if is_archive(path.name):
        raise DataError(f"{shown(path)} is an archive, and FAS does not look into those; unpack it and give the folder")


def told_if_large(path: Path, size: int, reading: Reading) -> None:
    """Say that a file is read which may take a while."""
    if size >= LARGE:
        reading.progress.note(f"reading {shown(path)}, about {size / 1e9:.1f} GB")


def text_of(path: Path, reading: Reading) -> str:
    """The whole text of ``path``, UTF-8 with or without a byte order mark, compressed or not; line ends as they are.

    Raises `DataError` for what cannot be read, is no text, or is not compressed as its ending says.
    """
    raw = _bytes_of(path, reading)
    if raw.startswith(_UTF16):
        raise DataError(f"{shown(path)} is UTF-16, and FAS reads UTF-8; save it as that")
    if raw.startswith(_POINTER):
        raise DataError(f"{shown(path)} is a pointer of Git LFS and not the data; fetch it with git lfs pull")
    tar = "a tar archive" if raw[257:262] == b"ustar" else None
    if what := next((what for magic, what in _MAGIC.items() if raw.startswith(magic)), tar):
        raise DataError(f"{shown(path)} is {what} by its first bytes, and its name says text; name it as what it is")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(path)} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise DataError(f"{shown(path)} is no text: line {line} holds a zero byte; is it truncated, or binary?")
    return text


def _bytes_of(path: Path, reading: Reading) -> bytes:
    size = checked(path)
    packing = path.suffix.lower()
    told_if_large(path, size * TIMES if packing in PACKED else size, reading)
    try:
        if packing not in PACKED:
            return path.read_bytes()
        with _OPEN[packing](path) as file:
            return _unpacked(file, size, path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{shown(path)} cannot be read: {reason}") from None


def _unpacked(file: object, size: int, path: Path) -> bytes:
    parts, total = [], 0
    while part := file.read(_CHUNK):  # type: ignore[attr-defined]  # one of three classes without a common one
        parts.append(part)
        total += len(part)
        if total > max(BOMB, MOST_TIMES * size):
            raise DataError(
                f"{shown(path)} becomes more than {MOST_TIMES} times as large when it is decompressed; unpack it yourself if "
                "that is meant"
            )
    return b"".join(parts)
