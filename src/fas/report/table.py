"""Results as one table: rich on a terminal, aligned plain lines elsewhere; the HTML report shows the same cells."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from typing import TextIO

from fas.report import words
from fas.report.results import Results, Row

# metrics that stand beside the perplexity
_BESIDE = {"word_perplexity": "word perplexity", "bits_per_byte": "bits/byte"}
_SPARED = (
    "schedule, steps", "MiB", "analog functions", "analog MACs", "memory traffic", "int8", "s to convert", "items", "latency",
    "energy", "bits/byte", "word perplexity", "coding",
)  # fmt: skip
"""Columns that a narrow terminal goes without, first to last."""


@dataclass(frozen=True)
class Column:
    """One column of the table and the text of its cells."""

    title: str
    cells: list[str]
    numbers: bool = False

    @property
    def width(self) -> int:
        """Characters of its widest cell, the title among them."""
        return max(map(len, [self.title, *self.cells]))


def columns_of(results: Results) -> list[Column]:
    """The columns that have something to say about these rows."""
    rows = results.rows
    reference = words.reference_row(results)
    against = "ANN" if reference is not None and reference.name == "ann" else "control"
    spikes = ["" if row.spikes_per_neuron is None else f"{row.spikes_per_neuron:.2f}" for row in rows]
    columns = [
        Column("task", [row.task or "" for row in rows]),
        Column("model", [words.model_label(row, results) + " *" * bool(row.stored) for row in rows]),
        Column("method", [row.method or "" for row in rows]),
        Column("coding", [words.coding_label(row) for row in rows]),
        Column("coverage", [row.coverage or "" for row in rows]),
        Column("budget", ["" if row.budget is None else f"{row.budget:g}" for row in rows], numbers=True),
        Column("L", [str(row.levels or "") for row in rows], numbers=True),
        Column("schedule, steps", [words.schedule_label(row) for row in rows]),
        Column("T", [str(row.timesteps or "") for row in rows], numbers=True),
        Column(
            "neurons/channel", [str(row.neurons_per_channel or "") if row.method else "" for row in rows], numbers=True
        ),
        Column("latency", [str(row.latency_timesteps or "") for row in rows], numbers=True),
        Column("stops when", [words.stopping_label(row) for row in rows]),
        Column(
            "mean T", ["" if row.mean_timesteps is None else f"{row.mean_timesteps:.2f}" for row in rows], numbers=True
        ),
        Column("Stage 2", [words.stage2_label(row) for row in rows]),
        Column(words.metric_title(results), [words.value_label(row, results) for row in rows], numbers=True),
        *(
            Column(
                title, [words.format_value((row.metrics or {}).get(name)) if row.metrics else "" for row in rows], True
            )
            for name, title in _BESIDE.items()
            if any(row.metric == "perplexity" and name in (row.metrics or {}) for row in rows)
        ),
        Column(f"vs {against}", [words.ratio_label(row, results) for row in rows], numbers=True),
        Column("spikes/neuron", spikes, numbers=True),
        Column(
            "s to convert", ["" if row.seconds_convert is None else f"{row.seconds_convert:.1f}" for row in rows], True
        ),
        Column("items", [str(row.items or "") for row in rows], numbers=True),
        Column("energy", [words.energy_label(row) for row in rows], numbers=True),
        Column("int8", [words.ledger_label(row, "same precision") for row in rows], numbers=True),
        Column("memory traffic", [words.ledger_label(row, "with memory") for row in rows], numbers=True),
        Column(
            "analog MACs", ["" if row.analog is None else f"{row.analog['macs']:.0%}" for row in rows], numbers=True
        ),
        Column(
            "analog functions", ["" if row.analog is None else f"×{row.analog['functions']:.2g}" for row in rows], True
        ),
        Column("MiB", ["" if row.memory_mib is None else f"{row.memory_mib:.0f}" for row in rows], numbers=True),
    ]
    return [column for column in columns if _says_something(column)]


def fitting(columns: list[Column], width: int) -> tuple[list[Column], list[str]]:
    """Those of ``columns`` that stand whole in ``width`` characters, and the titles of those left out, the least telling first.

    What says which row it is, and how good, is always there.
    """
    kept, left_out = list(columns), []
    for title in _SPARED:
        if sum(column.width + 3 for column in kept) <= width:
            break
        if any(column.title == title and not _tells_apart(column) for column in kept):
            kept = [column for column in kept if column.title != title]
            left_out.append(title)
    return kept, left_out


def _tells_apart(column: Column) -> bool:
    """Whether rows are known by it: codings, where there are two."""
    return column.title == "coding" and len(set(column.cells) - {""}) > 1


def _says_something(column: Column) -> bool:
    # one coverage or one L for all rows stands in the title
    enough = 1 if column.title in ("task", "coverage", "L") else 0
    return len(set(column.cells) - {""}) > enough


def plain_table(results: Results) -> str:
    """Title, table and notes as aligned lines of text."""
    columns = columns_of(results)
    laid_out = []
    for column in columns:
        width = column.width
        align = str.rjust if column.numbers else str.ljust
        laid_out.append([align(text, width) for text in [column.title, "-" * width, *column.cells]])
    lines = ["  ".join(line).rstrip() for line in zip(*laid_out, strict=True)]
    notes = [textwrap.fill(note, 110) for note in words.notes(results)]
    return "\n".join([words.title(results), "", *lines, "", *notes])


def print_results(results: Results, file: TextIO | None = None) -> None:
    """Print the table to ``file`` (standard output): rich if that is a terminal."""
    file = file or sys.stdout
    if not file.isatty():
        print(plain_table(results), file=file)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file)
    columns, left_out = fitting(columns_of(results), console.width)
    more = [f"Left out, for the width of this terminal: {', '.join(left_out)}; --json has all."] if left_out else []
    notes = "\n".join([*more, *words.notes(results)])
    table = Table(title=words.title(results), caption=notes, box=box.SIMPLE_HEAD, pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    for column in columns:
        table.add_column(column.title, justify="right" if column.numbers else "left", no_wrap=column.numbers)
    for row, before, *cells in zip(results.rows, [None, *results.rows], *[c.cells for c in columns], strict=False):
        if before is not None and _group(before) != _group(row):
            table.add_section()
        table.add_row(*cells)
    console.print(table)


def _group(row: Row) -> tuple[str | None, ...]:
    """Rows of one group stand together, without a line between them."""
    return (row.task, row.coverage, row.coding, row.rows, row.schedule) if row.name == "snn" else (row.task,)
