"""``fas tune``: weights of a converted folder, trained through simulated time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fas.cli.options import AsJson, Converted, Device, Quiet, Seed

NAME = "tune"
EXAMPLE = "fas tune gpt2-snn --data notes.txt --timesteps 2 --out gpt2-snn-tuned"


def command(
    folder: Converted,
    data: Annotated[str, typer.Option(help="Text, its training part: files, hub data set, or builtin.")],
    out: Annotated[Path, typer.Option(help="New folder for the tuned model.")],
    timesteps: Annotated[
        int | None, typer.Option(help="T, which is calibrated; default as converted.", show_default=False, min=1)
    ] = None,
    coding: Annotated[
        str | None, typer.Option(help="rate or sigma_delta; default as converted.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(help="Gradient steps.", min=1)] = 100,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of weights; 10 × for neurons.", show_default="1e-4 if < 20 M, 1e-5"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences a step; T times as many rows.", min=1)] = 8,
    length: Annotated[
        int | None, typer.Option(help="Tokens in a sequence.", show_default="as converted, or min(context, 256)", min=2)
    ] = None,
    distill: Annotated[
        float | None,
        typer.Option(
            help="Share of the loss that is KL to the teacher.", show_default="0.5, or 1 if the control is the ANN"
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Model to distil from.", show_default="the control, or the ANN")
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(help="Evaluation text; else the test split of --data, or its last 10 %.", show_default=False),
    ] = None,
    eval_sequences: Annotated[
        int | None, typer.Option(help="At most so many sequences to evaluate.", show_default=False, min=1)
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train all weights of a converted model for some steps through its simulated timesteps, and report it separately.

    An option beyond the paper, which freezes weights after Stage 1; the control has no such steps. Neurons of other times
    are left out. If interrupted, nothing is kept and the same command begins anew.
    """
    from fas.cli.session import print_json, session

    with session(quiet) as progress:
        from fas.pipeline.tune import TuneOptions, tune_folder
        from fas.report.table import print_results

        results = tune_folder(
            TuneOptions(
                str(folder),
                data,
                out,
                timesteps,
                coding and coding.replace("-", "_"),
                steps,
                lr,
                batch_size,
                length,
                distill,
                teacher,
                eval_data,
                eval_sequences,
                seed,
                device,
            ),
            progress,
        )
    if as_json:
        print_json(results.to_dict())
    else:
        print_results(results)
        print(f"written to {out}")
