"""``fas demo``: everything, on the embedded model, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fas.cli.options import AsJson, Quiet, Seed

NAME = "demo"
EXAMPLE = "fas demo --out runs/demo"


def command(
    out: Annotated[Path, typer.Option(help="Folder for model, results.json and report.html.")] = Path("runs/demo"),
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Convert the embedded small GPT-2, compare it with the original, let both write, and make a report.

    Needs no network and no GPU; takes a few minutes on two cores.
    """
    from fas.cli.session import print_json, session

    with session(quiet) as progress:
        from fas.pipeline.demo import run_demo
        from fas.report.html import write_report
        from fas.report.table import print_results
        from fas.report.words import samples_as_text

        results = run_demo(out, seed, progress)
        written = [results.write(out / "results.json"), write_report(results, out / "report.html")]
    if as_json:
        print_json(results.to_dict())
        return
    print_results(results)
    print()
    print(samples_as_text(results))
    print("Written: " + ", ".join(map(str, written)))
