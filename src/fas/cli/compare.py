"""``fas compare``: published conversion methods and FAS' own, on the same model, data, seed and coverage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fas.cli.options import AsJson, Device, Quiet, Seed, numbers_in, words_in
from fas.config import USUAL_LEVELS

if TYPE_CHECKING:
    from fas.pipeline.options import ConvertOptions
    from fas.pipeline.recipes import Recipe

NAME = "compare"
EXAMPLE = "fas compare --model builtin --data builtin --methods qcfs,fas-sigma-delta --timesteps 4,8 --out runs/compare"


def command(
    model: Annotated[str | None, typer.Option(help="Hub id, local folder, or builtin.", show_default=False)] = None,
    data: Annotated[
        str | None,
        typer.Option(help="What is trained, calibrated and measured on, as of fas convert.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; an interrupted comparison goes on.", show_default=False)
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Model, data and options by name, as of fas convert.", show_default=False)
    ] = None,
    task: Annotated[str | None, typer.Option(help="As of fas convert.", show_default="language-modeling")] = None,
    eval_data: Annotated[str | None, typer.Option(help="What is measured on.", show_default=False)] = None,
    methods: Annotated[list[str] | None, typer.Option(help="By name, see docs/methods.md.", show_default="all")] = None,
    timesteps: Annotated[list[str] | None, typer.Option(help="T, one or several.", show_default="2,4,8,16,32")] = None,
    coverage: Annotated[
        str | None, typer.Option(help="What becomes spikes: ffn, linear, attention or full.", show_default="linear")
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option(
            help="L of the QCFS model that methods start from.", show_default=f"{USUAL_LEVELS}, or the recipe's"
        ),
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="As of fas convert.", show_default="replace; without training keep")
    ] = None,
    rotation: Annotated[
        str | None, typer.Option(help="As of fas convert, for all methods.", show_default="auto")
    ] = None,
    center: Annotated[
        bool | None,
        typer.Option("--center/--no-center", help="As of fas convert, for all methods.", show_default="auto"),
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="As of fas convert, for all methods.", show_default="auto")] = None,
    stage1: Annotated[
        str | None, typer.Option(help="full, lora, or none: nothing is trained.", show_default="full")
    ] = None,
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

    All start from the same fine-tuned model or its QCFS model; with --stage1 none from the model as it is. Writes compare.json,
    compare.csv and compare.html to --out. Killed and started again it goes on; what fails costs its own row, and says why.
    """
    flags: dict[str, Any] = dict(locals())
    for own in ("methods", "timesteps", "as_json", "quiet"):
        del flags[own]
    from fas.cli.session import print_json, session

    with session(quiet) as progress:
        from fas.pipeline.compare import USUAL, CompareOptions, run_comparison
        from fas.pipeline.recipes import Compared
        from fas.report.table import print_results

        found = _recipe(flags.pop("recipe"))
        usual = found.compare or Compared()
        base = _shared(flags, found)
        chosen = tuple(word.replace("_", "-") for word in words_in(methods) or ()) or usual.methods
        times = numbers_in(timesteps, "--timesteps") or usual.timesteps or USUAL
        results = run_comparison(CompareOptions(base, chosen, times), progress)
        progress.note(f"written: compare.json, compare.csv and compare.html in {out}")
    print_json(results.to_dict()) if as_json else print_results(results)


def _recipe(name: str | None) -> Recipe:
    """The recipe of that name; without one, one that says nothing."""
    from fas.pipeline.recipes import Recipe, read_recipe

    return Recipe("", {}) if name is None else read_recipe(name)


def _shared(flags: dict[str, Any], found: Recipe) -> ConvertOptions:
    """What all methods share, of the recipe and the flags that were given (those that are not None)."""
    from fas.cli.convert import options_from, prefix_in
    from fas.pipeline.compare import OF_A_METHOD

    usual: dict[str, Any] = {"levels": USUAL_LEVELS}
    if (flags["stage1"] or found.options.get("stage1")) == "none":
        usual["activation"] = "keep"  # nothing could learn to do without one
    options = usual | {name: value for name, value in found.options.items() if name not in OF_A_METHOD}
    levels = options["levels"] if flags["levels"] is None else flags["levels"]
    given = flags | {"prefix": prefix_in(flags["prefix"]), "timesteps": (levels,)}
    return options_from(given, replace(found, options=options))
