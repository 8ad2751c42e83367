"""``fas compare``: published conversion methods and FAS' own, on the same model, data, seed and coverage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli.options import AsJson, Device, Quiet, Seed, numbers_in, words_in

NAME = "compare"
EXAMPLE = "fas compare --model builtin --data builtin --methods qcfs,fas-sigma-delta --timesteps 4,8 --out runs/compare"


def command(
    model: Annotated[str, typer.Option(help="Hub id, local folder, or builtin.")],
    data: Annotated[str, typer.Option(help="What is trained, calibrated and measured on, as of fas convert.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write; an interrupted comparison goes on, and others add to it.")
    ],
    task: Annotated[str, typer.Option(help="As of fas convert.")] = "language-modeling",
    eval_data: Annotated[str | None, typer.Option(help="What is measured on.", show_default=False)] = None,
    methods: Annotated[list[str] | None, typer.Option(help="By name, see docs/methods.md.", show_default="all")] = None,
    timesteps: Annotated[list[str] | None, typer.Option(help="T, one or several.", show_default="2,4,8,16,32")] = None,
    coverage: Annotated[str, typer.Option(help="What becomes spikes: ffn, linear, attention or full.")] = "linear",
    levels: Annotated[int, typer.Option(help="L of the QCFS model that trained methods start from.")] = 8,
    stage1_steps: Annotated[
        int | None,
        typer.Option(help="Optimizer steps of Stage 1 and the control; else by model size.", show_default=False),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Of Stage 1; else by task.", show_default=False)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; else by model size.", show_default=False)] = None,
    length: Annotated[int | None, typer.Option(help="Tokens in a sequence.", show_default="min(context, 256)")] = None,
    calibration_sequences: Annotated[
        int | None, typer.Option(help="Sequences that methods may calibrate on; else by task.", show_default=False)
    ] = None,
    eval_sequences: Annotated[
        int | None, typer.Option(help="At most so many to measure on.", show_default="all")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare conversion methods: quality, latency, spikes, energy and time, one row a method and T.

    All start from the same fine-tuned model or its QCFS model. Writes compare.json, compare.csv and compare.html to --out.
    Killed and started again it goes on; what fails costs its own row, and says why.
    """
    flags: dict[str, Any] = dict(locals())
    for own in ("methods", "timesteps", "as_json", "quiet"):
        del flags[own]
    from fas.cli.session import print_json, session

    with session(quiet) as progress:
        from fas.pipeline.compare import USUAL, CompareOptions, run_comparison
        from fas.pipeline.options import ConvertOptions
        from fas.report.table import print_results

        base = ConvertOptions(**flags, timesteps=(levels,))
        chosen = tuple(word.replace("_", "-") for word in words_in(methods) or ())
        times = numbers_in(timesteps, "--timesteps") or USUAL
        results = run_comparison(CompareOptions(base, chosen, times), progress)
        progress.note(f"written: compare.json, compare.csv and compare.html in {out}")
    print_json(results.to_dict()) if as_json else print_results(results)
