"""``fas demo``: everything, on the embedded model, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fas.cli.options import AsJson, Quiet, Seed

NAME = "demo"
EXAMPLE = "fas demo --out runs/demo"


def command(
    vision: Annotated[
        bool,
        typer.Option(
            "--vision", help="The embedded vision-language model, on pictures of shapes, instead of the GPT-2."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for model, results.json and report.html; default runs/demo, or runs/demo-vision.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Convert an embedded small model, compare it with the original, let both write or answer, and make a report.

    Needs no network and no GPU; takes a few minutes on two cores.
    """
    from fas.cli.session import print_json, session

    with session(quiet) as progress:
        from fas.pipeline.demo import run_demo
        from fas.pipeline.demo_vision import run_vision_demo
        from fas.report.html import write_report
        from fas.report.scenes import scenes_as_text
        from fas.report.table import print_results
        from fas.report.words import samples_as_text

        out = out or Path("runs/demo-vision" if vision else "runs/demo")
        results = (run_vision_demo if vision else run_demo)(out, seed, progress)
        written = [results.write(out / "results.json"), write_report(results, out / "report.html")]
    if as_json:
        print_json(results.to_dict())
        return
    print_results(results)
    print()
    print(scenes_as_text(results) if vision else samples_as_text(results))
    print("Written: " + ", ".join(map(str, written)))
