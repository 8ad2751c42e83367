"""Documents of files and data sets, for language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fas.errors import DataError
from fas.tasks.reading.chat import CHATS, chat_text
from fas.tasks.reading.contents import refuse_archive
from fas.tasks.reading.journal import Reading
from fas.tasks.reading.names import TEXTS, form_of, shown
from fas.tasks.reading.plain import plain_documents
from fas.tasks.reading.tables import Table, read_table, text_at

COLUMNS = ("text", "content", "document", "sentence", "story")
"""Names of a column of documents, best first."""


def documents_of(path: Path, reading: Reading, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """The documents of one file that are not blank. Raises `DataError` for a file that cannot be read as its ending says."""
    refuse_archive(path)
    form = form_of(path.name, TEXTS)
    if form is None:
        raise DataError(
            f"{shown(path)} has the ending {path.suffix!r}; FAS reads text (.txt, .md, .raw, .tokens), .json, .jsonl, .csv, "
            ".tsv, .parquet and .arrow, also compressed (.gz, .bz2, .xz)"
        )
    if form == "text":
        return [stripped for document in plain_documents(path, reading) if (stripped := document.strip())]
    return texts_of(read_table(path, form, _is_header, reading), reading, tokenizer)


def texts_of(table: Table, reading: Reading, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """The text of each row that is not blank, or its chat as ``tokenizer`` writes it. Raises `DataError` by row for anything
    else."""
    if not len(table.rows):
        return []
    column = _column(table)
    if others := [name for name in (*COLUMNS, *CHATS) if name in table.rows[0] and name != column]:
        reading.note(f"of {table.source} the column {column} is read, not {', '.join(others)}")
    table = table.only([column])
    numbers = range(len(table.rows))
    if column in CHATS:
        return [chat_text(table, number, column, tokenizer).strip() for number in numbers]
    texts = [text_at(table, number, column).strip() for number in numbers]
    if blank := texts.count(""):
        reading.note(f"{blank:,} blank {'row is' if blank == 1 else 'rows are'} skipped in {table.source}")
    return [text for text in texts if text]


def _is_header(names: Sequence[str]) -> bool:
    return any(name in COLUMNS for name in names)


def _column(table: Table) -> str:
    first = table.rows[0]
    if not table.named:
        raise DataError(
            f"{table.source} begins with {table.columns}, and none of these names a column of texts; put a line of names "
            "there, and name the one with the text 'text'"
        )
    for name in (*COLUMNS, *CHATS):
        if name in first:
            return name
    if len(first) == 1:
        return str(next(iter(first)))
    raise DataError(f"{table.source} has the columns {table.columns}; name the one with the text 'text'")
