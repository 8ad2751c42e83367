"""``fas verify``: whether a saved folder is as it was saved."""

from __future__ import annotations

from typing import Annotated

import typer

from fas.cli import options
from fas.cli.session import print_json, session

NAME = "verify"
EXAMPLE = "fas verify my-snn"


def command(
    folder: options.Converted,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Annotated[int, typer.Exit]:
    """Compare all checksums of a saved folder; exit with 1 and a line for each thing that is wrong."""
    from fas.pipeline.verify import verify

    with session(quiet) as progress:
        found = verify(folder, progress)
    if as_json:
        print_json({"folder": str(folder), "tensors": found.tensors, "problems": found.problems})
    else:
        for problem in found.problems:
            print(problem)
        if not found.problems:
            print(f"{folder}: all {found.tensors} tensors, the configuration and the tokenizer are as they were saved")
    return 1 if found.problems else 0
