"""What the name of a file says: in which form it is, to which split it belongs, and whether it is data at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

TABLES = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".arrow": "arrow",
}  # fmt: skip
"""Endings of tables, and their forms."""
TEXTS = dict.fromkeys((".txt", ".text", ".md", ".raw", ".tokens", ""), "text") | TABLES
"""Endings of what holds documents."""
LABELLED = TABLES | {".txt": "tsv"}
"""Endings of what holds labelled texts."""
PACKED = (".gz", ".bz2", ".xz")
"""Compressed files are read through."""

ARCHIVES = (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".7z", ".rar", ".zst", ".lz4")
"""Endings of what holds files, or is compressed as Python cannot undo."""

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), TRAIN),
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval", "evaluation", "validset", "valset", "devset"), VALIDATION),
    **dict.fromkeys(("test", "testing", "testset"), TEST),
}  # fmt: skip
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")

_OF_SYSTEMS = {"__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini", "_SUCCESS", "lost+found"}
_UNFINISHED = ("~", ".bak", ".swp", ".tmp", ".part", ".orig", ".lock", ".incomplete", ".crdownload")
_CARD = re.compile(r"(readme|dataset_?card)(?![a-z])", re.IGNORECASE)
_LICENCE = re.compile(r"(licen[sc]es?|copying|copyright)(?![a-z])", re.IGNORECASE)
_NOTE = re.compile(r"(SOURCES?|CITATIONS?|AUTHORS|CHANGELOG|CHANGES|CONTRIBUTING|CREDITS|NOTICE|TODO)(?![a-z])")
_PROSE = {"", ".txt", ".text", ".md", ".rst", ".html", ".pdf", ".cff", ".bib"}
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json"}


def shown(name: object) -> str:
    """``name`` on one line: what cannot be printed is escaped.

    >>> shown("a\\nb"), shown("\\udcff.txt"), shown("é.txt")
    ('a\\\\nb', '\\\\udcff.txt', 'é.txt')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def ending_of(name: str) -> str:
    """The ending in small letters, without that of compression.

    >>> ending_of("a.JSONL.gz"), ending_of("README"), ending_of("wiki.train.tokens")
    ('.jsonl', '', '.tokens')
    """
    return PurePath(_unpacked(name)).suffix.lower()


def is_archive(name: str) -> bool:
    """Whether ``name`` is that of an archive.

    >>> is_archive("a.zip"), is_archive("a.tar.GZ"), is_archive("a.jsonl.gz")
    (True, True, False)
    """
    return ending_of(name) in ARCHIVES


def why_unread(name: str) -> str:
    """Why a file called ``name``, whose form is not read, is skipped.

    >>> why_unread("a.pdf"), why_unread("a"), why_unread("a.zip")
    ('ending .pdf', 'no ending', 'an archive: unpack it')
    """
    if is_archive(name):
        return "an archive: unpack it"
    suffix = PurePath(name).suffix
    return f"ending {shown(suffix)}" if suffix else "no ending"


def stem_of(name: str) -> str:
    """``name`` without its endings.

    >>> stem_of("data/piqa.jsonl.gz")
    'piqa'
    """
    return PurePath(_unpacked(name)).stem


def _unpacked(name: str) -> str:
    return str(PurePath(name).with_suffix("")) if PurePath(name).suffix.lower() in PACKED else name


def form_of(name: str, forms: Mapping[str, str]) -> str | None:
    """How a file called ``name`` is read, by its ending; None: not at all."""
    return forms.get(ending_of(name))


def splits_of(name: str) -> set[str]:
    """The splits that ``name`` speaks of: `TRAIN`, `VALIDATION`, `TEST`.

    >>> splits_of("train-00000-of-00001.parquet"), splits_of("captions_val2017.json"), splits_of("devotion.txt")
    ({'train'}, {'validation'}, set())
    """
    return {_SPLITS[word] for word in map(str.lower, _WORD.findall(name)) if word in _SPLITS}


def set_aside(name: str) -> str:
    """Why a file or folder called ``name`` is no data, as cards and hidden files are none; empty if it may be some.

    >>> set_aside("README.md"), set_aside(".git"), set_aside("readme.csv"), set_aside("stories.txt")
    ('card', 'hidden', '', '')
    """
    if name.startswith(".") or name in _OF_SYSTEMS:
        return "hidden"
    if name.lower().endswith(_UNFINISHED):
        return "backup or unfinished"
    if name in _METADATA:
        return "metadata"
    if PurePath(name).suffix.lower() not in _PROSE:
        return ""
    for pattern, reason in ((_CARD, "card"), (_LICENCE, "licence"), (_NOTE, "note")):
        if pattern.match(name):
            return reason
    return ""
