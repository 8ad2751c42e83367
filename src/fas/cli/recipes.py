"""``fas recipes``: what there is to reproduce, one line each."""

from __future__ import annotations

import shutil
import sys
import textwrap

from fas.cli.options import AsJson

NAME = "recipes"
EXAMPLE = "fas recipes"


def command(as_json: AsJson = False) -> None:
    """List the recipes of fas convert --recipe: model, data, what each reproduces, and a published figure to compare with."""
    from fas.cli.session import print_json
    from fas.pipeline.recipes import listed
    from fas.report.inspection_text import aligned

    found = listed()
    if as_json:
        print_json({"recipes": found})
    else:
        columns = ("name", "model", "data", "reproduces", "published")
        lines = [line.strip() for line in aligned([columns, *(tuple(e[c] for c in columns) for e in found)])]
        if sys.stdout.isatty() and max(map(len, lines)) > shutil.get_terminal_size().columns:
            lines = [line for entry in found for line in _stacked(entry)]
        print("\n".join(lines))


def _stacked(entry: dict[str, str]) -> list[str]:
    """A recipe below its name, where a terminal is too narrow for a line each."""
    about = f"reproduces {entry['reproduces']}; published: {entry['published']}"
    return [
        entry["name"],
        f"  {entry['model']}, {entry['data']}",
        *textwrap.wrap(about, shutil.get_terminal_size().columns - 1, initial_indent="  ", subsequent_indent="  "),
    ]
