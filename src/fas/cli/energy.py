"""``fas energy``: the ledger of a converted model, or of any model that FAS knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fas.cli.options import (
    AsJson,
    Device,
    DType,
    LabelColumn,
    PairColumn,
    Quiet,
    Seed,
    TextColumn,
    no_file,
    numbers_in,
    words_in,
)

NAME = "energy"
EXAMPLE = "fas energy gpt2-snn --data notes.txt --timesteps 4,8 --plots figures"

_Plots = Annotated[
    Path | None,
    typer.Option(help="Folder for SVG figures: firing rates, rasters, energy.", show_default=False, callback=no_file),
]


def command(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder that fas convert wrote, or an ANN.", show_default=False)
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Data whose evaluation part is run: files, a hub set, builtin.", show_default="as converted"),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(help="Text to run; else the test split of --data, or its last 10 %.", show_default=False),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Of an ANN: what it does.", show_default="as converted")] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    timesteps: Annotated[
        list[str] | None, typer.Option(help="T, one or several: 2,4,8; default as converted.", show_default=False)
    ] = None,
    coding: Annotated[
        list[str] | None, typer.Option(help="rate, sigma_delta, or both; default as converted.", show_default=False)
    ] = None,
    sequences: Annotated[int, typer.Option(help="Sequences in the one batch that is run.", min=1)] = 4,
    length: Annotated[
        int | None, typer.Option(help="Tokens in a sequence.", show_default="min(context, 256)", min=2)
    ] = None,
    decode: Annotated[bool, typer.Option(help="Also one decoding step behind a cache.")] = True,
    neurobench: Annotated[bool, typer.Option(help="Also NeuroBench's metrics, by its definitions.")] = True,
    energy_model: Annotated[
        Path | None, typer.Option(help="YAML file with other constants; else 45 nm.", show_default=False)
    ] = None,
    plots: _Plots = None,
    raster: Annotated[
        list[str] | None,
        typer.Option(
            help="Sites of the raster: names or re:PATTERN; default the first of each kind.", show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DType = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Account for every operation of one real forward pass: what became spikes, what stayed analog, what both cost."""
    from fas.cli.session import print_json, session

    with session(quiet) as progress:
        from fas.pipeline.energy import EnergyOptions, energy_of

        reports = energy_of(
            EnergyOptions(
                folder,
                data,
                eval_data,
                task,
                (text_column, pair_column, label_column),
                numbers_in(timesteps, "--timesteps") or (),
                words_in(coding) or (),
                sequences,
                length,
                decode,
                neurobench,
                energy_model,
                plots,
                tuple(raster or ()),
                seed,
                device,
                dtype,
            ),
            progress,
        )
    if as_json:
        print_json({"ledgers": [report.to_dict() for report in reports]})
    else:
        print("\n\n".join(str(report) for report in reports))
