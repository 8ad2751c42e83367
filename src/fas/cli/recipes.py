"""``fas recipes``: what there is to reproduce, one line each."""

from __future__ import annotations

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
        print("\n".join(line.strip() for line in aligned([columns, *(tuple(e[c] for c in columns) for e in found)])))
