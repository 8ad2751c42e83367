"""Documents of a plain text."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fas.errors import DataError
from fas.tasks import builtin
from fas.tasks.reading.contents import text_of
from fas.tasks.reading.journal import Reading
from fas.tasks.reading.names import shown

_BLANK = re.compile(r"\n(?:[^\S\n]*\n)+")
_TITLE = re.compile(r"\n ?= [^=\n]+ = ?(?=\n[^\S\n]*\n)")
"""The title of an article of WikiText, before a blank line."""
_FIRST_LINES = 3


def plain_documents(path: Path, reading: Reading) -> list[str]:
    """The documents of the text file ``path``: they end with ``<|endoftext|>`` if it stands in the text; in WikiText where the
    next article's title (``= Title =`` between blank lines) begins; else at lines that are blank or hold only white space.

    Raises `DataError` for what is no text, or is JSON lines under another name.
    """
    text = text_of(path, reading).replace("\r\n", "\n").replace("\r", "\n")
    if _is_json_lines(text):
        raise DataError(f"{shown(path)} holds JSON lines, and its ending says text; call it .jsonl")
    if builtin.SEPARATOR in text:
        return text.split(builtin.SEPARATOR)
    return _articles(f"\n{text}") or _BLANK.split(text)


def _articles(text: str) -> list[str]:
    """The articles of a WikiText, which begin with titles between blank lines; none of another text."""
    places = [found.start() for found in _TITLE.finditer(text)]
    starts = [place for place in places if not text[text.rfind("\n", 0, place) + 1 : place].strip()]
    if len(starts) < 2 or text[: starts[0]].strip():
        return []
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _is_json_lines(text: str) -> bool:
    lines = text.split("\n", 50)[:50]
    first = [line for line in lines if line.strip()][:_FIRST_LINES]
    try:
        return bool(first) and all(
            line.lstrip().startswith("{") and isinstance(json.loads(line), dict) for line in first
        )
    except (ValueError, RecursionError):
        return False
