"""``fas calibrate``: Stage 2 for other codings and timesteps of a converted folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fas import world
from fas.cli.options import AsJson, Converted, Device, Quiet, Seed, numbers_in, words_in

NAME = "calibrate"
EXAMPLE = "fas calibrate gpt2-snn --data notes.txt --timesteps 2 --out gpt2-snn-2"


def command(
    folder: Converted,
    out: Annotated[Path, typer.Option(help="New folder for the model with these neurons, too.")],
    timesteps: Annotated[list[str], typer.Option(help="T, one or several: 2,4,8.")],
    data: Annotated[
        str | None, typer.Option(help="Training data: files, hub data set, or builtin.", show_default="as converted")
    ] = None,
    coding: Annotated[
        list[str] | None, typer.Option(help="rate, sigma_delta, or both; default as converted.", show_default=False)
    ] = None,
    calibration_sequences: Annotated[
        int | None, typer.Option(help="Sequences to calibrate on.", show_default="32, of labelled texts 256", min=1)
    ] = None,
    fit_steps: Annotated[
        int | None,
        typer.Option(
            help="Gradient steps a site, on its recorded input.", show_default="32, of more than 12 layers 0", min=0
        ),
    ] = None,
    absorb_bias: Annotated[
        bool, typer.Option("--absorb-bias", help="Mean errors go into the biases behind (beyond the paper).")
    ] = False,
    align_steps: Annotated[int, typer.Option(help="Gradient steps a layer, through the layer.", min=0)] = 0,
    global_steps: Annotated[int, typer.Option(help="Gradient steps of the last, global pass.", min=0)] = 0,
    length: Annotated[
        int | None, typer.Option(help="Tokens in a sequence.", show_default="min(context, 256)", min=2)
    ] = None,
    from_disk: Annotated[
        bool, typer.Option("--from-disk", help="Hold one block's weights at a time; without the global pass.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Calibrate the neurons of a converted model for other timesteps; its weights and its other neurons stay."""
    from fas.cli.session import print_json, session

    with session(quiet, parallel=True) as progress:
        from fas.pipeline.calibrate import CalibrateOptions, calibrate_again

        reports = calibrate_again(
            CalibrateOptions(
                str(folder),
                data,
                out,
                numbers_in(timesteps, "--timesteps") or (),
                words_in(coding) or (),
                calibration_sequences,
                fit_steps,
                absorb_bias,
                align_steps,
                global_steps,
                length,
                from_disk,
                seed,
                device,
            ),
            progress,
        )
    if not world.is_first():
        return
    if as_json:
        print_json({"calibrated": {key: [vars(entry) for entry in found] for key, found in reports.items()}})
        return
    for key, found in reports.items():
        if not found:
            print(f"{key}: step schedules only; no layer was searched")
            continue
        print(f"{key}: relative error of each layer, uncalibrated → by site → by layer")
        for entry in found:
            print(f"  {entry.name:<24} {entry.before:.4f} → {entry.by_site:.4f} → {entry.by_layer:.4f}")
    print(f"written to {out}")
