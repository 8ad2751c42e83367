"""``fas eval``: quality of the ANN, the QCFS model and the SNN side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from fas import world
from fas.cli.options import (
    Adaptive,
    AsJson,
    Converted,
    Device,
    DType,
    LabelColumn,
    PairColumn,
    Quiet,
    Seed,
    TextColumn,
    fractions_in,
    numbers_in,
    words_in,
)

NAME = "eval"
DIAGNOSED = 16
"""Sequences of evaluation text; each is run once a layer."""
EXAMPLE = "fas eval gpt2-snn --data notes.txt --timesteps 2,4,8"


def command(
    folder: Converted,
    data: Annotated[
        str | None,
        typer.Option(help="Files, a hub data set, or builtin.", show_default="as converted"),
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option(help="Evaluation text; else the held-out last 10 % of --data.", show_default=False)
    ] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    timesteps: Annotated[
        list[str] | None, typer.Option(help="T, one or several: 2,4,8; default as converted.", show_default=False)
    ] = None,
    coding: Annotated[
        list[str] | None, typer.Option(help="rate, sigma_delta, or both; default as converted.", show_default=False)
    ] = None,
    layerwise: Annotated[bool, typer.Option("--layerwise", help="Also the layerwise schedule.")] = False,
    eval_sequences: Annotated[
        int | None, typer.Option(help="At most so many sequences.", show_default=False, min=1)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences in a batch.", show_default="16", min=1)] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens in a sequence.", show_default="min(context, 256)", min=2)
    ] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Where the temporal error is: by site, and what each layer costs.")
    ] = False,
    adaptive: Adaptive = False,
    confidence: Annotated[
        list[str] | None,
        typer.Option(help="Also stop at this mean largest probability: 0.5,0.9.", show_default=False),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DType = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a converted model on held-out text, beside the ANN, the control and the QCFS model that it came from."""
    from fas.cli.session import print_json, session

    with session(quiet, parallel=True) as progress:
        from fas.pipeline.evaluate import evaluate_folder
        from fas.report.diagnosis_text import diagnosis_text
        from fas.report.table import print_results

        results = evaluate_folder(
            folder,
            data,
            eval_data=eval_data,
            columns=(text_column, pair_column, label_column),
            timesteps=numbers_in(timesteps, "--timesteps"),
            codings=words_in(coding),
            layerwise=layerwise,
            eval_sequences=eval_sequences,
            batch_size=batch_size,
            length=length,
            seed=seed,
            device=device,
            dtype=dtype,
            diagnosed=DIAGNOSED if diagnose else 0,
            adaptive=adaptive,
            confidences=fractions_in(confidence, "--confidence") or (),
            progress=progress,
        )
    if not world.is_first():
        return
    if as_json:
        print_json(results.to_dict())
    else:
        print_results(results)
        for found in results.extra.get("diagnosis", {}).values():
            print("\n" + diagnosis_text(found))
