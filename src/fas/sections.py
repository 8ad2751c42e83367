"""Reports as sections with a table each, which are shown as lines of text or, in a notebook, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeVar


@dataclass(frozen=True)
class Section:
    """A line, a table whose first row is its head, and lines behind it; what is empty is not shown."""

    title: str = ""
    table: Sequence[Sequence[str]] = ()
    behind: Sequence[str] = ()

    @property
    def lines(self) -> list[str]:
        """As text."""
        return [*([self.title] if self.title else []), *aligned(self.table), *self.behind]


def as_text(sections: Iterable[Section]) -> str:
    """``sections`` with an empty line between them."""
    return "\n\n".join("\n".join(section.lines) for section in sections)


def as_html(sections: Iterable[Section]) -> str:
    """``sections`` for a notebook, which has a style for tables.

    >>> as_html([Section("What ran:", [("kind",), ("<x>",)])])
    '<p>What ran:</p><table><thead><tr><th>kind</th></tr></thead><tbody><tr><td>&lt;x&gt;</td></tr></tbody></table>'
    """
    return "".join(_section(section) for section in sections)


def _section(section: Section) -> str:
    found = f"<p>{escape(section.title)}</p>" if section.title else ""
    if section.table:
        head, *body = section.table
        rows = "".join(_row(row, "td") for row in body)
        found += f"<table><thead>{_row(head, 'th')}</thead><tbody>{rows}</tbody></table>"
    return found + (f"<p>{'<br>'.join(escape(line.strip()) for line in section.behind)}</p>" if section.behind else "")


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their first column to the left, the others to the right.

    >>> aligned([("site", "spikes"), ("a", "1.25")])
    ['  site  spikes', '  a       1.25']
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        rest = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([f"  {row[0]:<{widths[0]}}", *rest]).rstrip())
    return lines


class Shown:
    """A report with `sections`: ``print`` gives text, a notebook HTML."""

    def sections(self) -> list[Section]:
        """What there is to see."""
        raise NotImplementedError

    def __str__(self) -> str:
        return as_text(self.sections())

    def _repr_html_(self) -> str:
        return as_html(self.sections())


Entry = TypeVar("Entry")


class Reports(list[Entry], Shown):
    """A list of reports, one a layer, shown as a table of their fields."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dict a layer, such as pandas.DataFrame takes."""
        return [dict(vars(entry)) for entry in self]

    def sections(self) -> list[Section]:
        """One table."""
        if not self:
            return [Section("No layer was worked on by itself.")]
        head = tuple(name.replace("_", " ") for name in self.rows[0])
        body = [tuple(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) for row in self.rows]
        return [Section("Relative error of each layer's output:", [head, *body])]

    __str__ = Shown.__str__
