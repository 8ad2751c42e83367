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
_ARTICLE = re.compile(r"(?:\A|(?<=\n))[^\S\n]*\n ?= [^=\n]+ = ?\n(?=[^\S\n]*\n)")
"""The title of an article of WikiText, between blank lines."""
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
    starts = [found.start() for found in _ARTICLE.finditer(f"\n{text}")]
    if len(starts) > 1 and not text[: max(0, starts[0] - 1)].strip():
        text = f"\n{text}"
        return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    return _BLANK.split(text)


def _is_json_lines(text: str) -> bool:
    lines = text.split("\n", 50)[:50]
    first = [line for line in lines if line.strip()][:_FIRST_LINES]
    try:
        return bool(first) and all(
            line.lstrip().startswith("{") and isinstance(json.loads(line), dict) for line in first
        )
    except (ValueError, RecursionError):
        return False
