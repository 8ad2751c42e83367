"""``fas ablate``: the ablations of both stages over several seeds, as table, JSON and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fas.cli.options import AsJson, Device, Quiet, numbers_in, words_in
from fas.config import USUAL_LEVELS, USUAL_TIMESTEPS

NAME = "ablate"
EXAMPLE = "fas ablate --model builtin --data builtin --out runs/ablation --seeds 0,1,2 --jobs 4"


def command(
    model: Annotated[str, typer.Option(help="Hub id, local folder, or builtin.")],
    data: Annotated[str, typer.Option(help="Training text: files, a hub data set, or builtin.")],
    out: Annotated[Path, typer.Option(help="Folder to write; an interrupted ablation goes on, and others add to it.")],
    eval_data: Annotated[
        str | None, typer.Option(help="Evaluation text; else its test split, or last 10 %.", show_default=False)
    ] = None,
    coverage: Annotated[str, typer.Option(help="What becomes spikes: ffn, linear, attention or full.")] = "linear",
    levels: Annotated[int, typer.Option(help="L, where a variant does not say another.")] = USUAL_LEVELS,
    timesteps: Annotated[int, typer.Option(help="T, where a variant does not say another.")] = USUAL_TIMESTEPS,
    seeds: Annotated[list[str] | None, typer.Option(help="One or several.", show_default="0,1,2")] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(help="stages, calibration, losses, coding, neurons, size, grid; all or some.", show_default="all"),
    ] = None,
    grid_levels: Annotated[list[str] | None, typer.Option(help="L of the grid.", show_default="3,4,8,15")] = None,
    grid_timesteps: Annotated[list[str] | None, typer.Option(help="T of the grid.", show_default="2,3,4,8")] = None,
    stage1_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps of Stage 1; else by model size.", show_default=False)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; else by model size.", show_default=False)] = None,
    length: Annotated[int | None, typer.Option(help="Tokens in a sequence.", show_default="min(context, 256)")] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences in a batch of Stage 1.")] = 8,
    calibration_sequences: Annotated[int, typer.Option(help="Sequences that Stage 2 uses.")] = 32,
    eval_sequences: Annotated[
        int | None, typer.Option(help="At most so many sequences to evaluate on.", show_default="all")
    ] = None,
    fit_steps: Annotated[int, typer.Option(help="Gradient steps of Stage 2 for each site.")] = 32,
    align_steps: Annotated[int, typer.Option(help="Those for each layer, where a variant has them.")] = 16,
    global_steps: Annotated[int, typer.Option(help="Those for the whole network, where a variant has them.")] = 16,
    jobs: Annotated[int, typer.Option(help="Processes that work side by side; a GPU is shared.")] = 1,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take the parts of both stages away one by one, for several seeds: what each is worth, with its spread.

    Writes ablation.json, ablation.md and a figure for each group to --out. Killed and started again it goes on; more seeds or
    groups compute what is missing only. What fails costs its own row.
    """
    flags = {name: value for name, value in locals().items() if name not in ("as_json", "quiet")}
    from fas.cli.session import print_json, session

    flags["groups"] = words_in(groups) or ()
    for name in ("seeds", "grid_levels", "grid_timesteps"):
        flags[name] = numbers_in(flags[name], f"--{name.replace('_', '-')}")
    flags = {name: value for name, value in flags.items() if value is not None}
    with session(quiet) as progress:
        from fas.pipeline.ablate import run_ablation
        from fas.pipeline.ablation_options import AblateOptions
        from fas.report.ablation_table import plain_ablation

        results = run_ablation(AblateOptions(**flags), progress)
        progress.note(f"written: ablation.json, ablation.md and figures in {out}")
    if as_json:
        print_json(results.to_dict())
    else:
        print(plain_ablation(results))
