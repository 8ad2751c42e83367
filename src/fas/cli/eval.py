"""``fas eval``: quality of the ANN, the QCFS model and the SNN side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fas import world
from fas.cli.options import (
    Adaptive,
    AsJson,
    Converted,
    Device,
    DType,
    IncludePath,
    IntegerBits,
    LabelColumn,
    Limit,
    MemoryLimit,
    NumFewshot,
    PairColumn,
    Quiet,
    Seed,
    Stride,
    Tasks,
    TextColumn,
    fractions_in,
    names_in,
    no_file,
    numbers_in,
    words_in,
)
from fas.errors import ConfigError

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
        str | None,
        typer.Option(help="Evaluation text; else the test split of --data, or its last 10 %.", show_default=False),
    ] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    tasks: Tasks = None,
    include_path: IncludePath = None,
    limit: Limit = None,
    num_fewshot: NumFewshot = None,
    timesteps: Annotated[
        list[str] | None, typer.Option(help="T, one or several: 2,4,8; default as converted.", show_default=False)
    ] = None,
    coding: Annotated[
        list[str] | None, typer.Option(help="rate, sigma_delta, or both; default as converted.", show_default=False)
    ] = None,
    layerwise: Annotated[bool, typer.Option("--layerwise", help="Also the layerwise schedule.")] = False,
    eval_sequences: Annotated[
        int | None, typer.Option(help="At most so many sequences (documents with --stride).", show_default=False, min=1)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences in a batch.", show_default="16", min=1)] = None,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens in a sequence.", show_default="min(context, 256); with --tasks the context", min=2),
    ] = None,
    stride: Stride = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Where the temporal error is: by site, and what each layer costs.")
    ] = False,
    plots: Annotated[
        Path | None,
        typer.Option(
            help="With --diagnose: folder for SVG figures, how far each layer has settled.",
            show_default=False,
            callback=no_file,
        ),
    ] = None,
    adaptive: Adaptive = False,
    confidence: Annotated[
        list[str] | None,
        typer.Option(help="Also stop at this mean largest probability: 0.5,0.9.", show_default=False),
    ] = None,
    memory_limit: MemoryLimit = None,
    integer_bits: IntegerBits = 0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DType = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a converted model on held-out text, beside the ANN, the control and the QCFS model that it came from."""
    from fas.cli.session import session

    if plots is not None and not diagnose:
        raise ConfigError("--plots shows what --diagnose finds; give both")
    common = {
        "timesteps": numbers_in(timesteps, "--timesteps"), "codings": words_in(coding), "layerwise": layerwise,
        "batch_size": batch_size, "length": length, "seed": seed, "device": device, "dtype": dtype,
        "memory_limit": memory_limit, "integer_bits": integer_bits,
    }  # fmt: skip
    columns = (text_column, pair_column, label_column)
    with_text = {
        "data": data, "eval_data": eval_data, "columns": columns if any(columns) else None,
        "eval_sequences": eval_sequences, "stride": stride, "diagnosed": DIAGNOSED if diagnose else None,
        "adaptive": adaptive or None, "confidences": fractions_in(confidence, "--confidence"),
    }  # fmt: skip
    with_tasks = {"include": include_path, "limit": limit, "num_fewshot": num_fewshot}
    with session(quiet, parallel=not tasks) as progress:
        results = _measured(folder, names_in(tasks), common | {"progress": progress}, with_text, with_tasks)
    if world.is_first():
        _show(results, as_json, plots)


def _measured(folder: Any, tasks: Any, common: dict[str, Any], text: dict[str, Any], asked: dict[str, Any]) -> Any:
    """Text or ``tasks``; raises `ConfigError` for an option that belongs to the other."""
    kind, own, foreign = ("with", asked, text) if tasks else ("without", text, asked)
    if given := [name for name, value in foreign.items() if value is not None]:
        raise ConfigError(f"{_OPTIONS[given[0]]} does not go {kind} --tasks; leave it out")
    chosen = common | {name: value for name, value in own.items() if value is not None}
    if tasks:
        from fas.pipeline.zero_shot import evaluate_tasks

        return evaluate_tasks(folder, tasks, **chosen)
    from fas.pipeline.evaluate import evaluate_folder

    return evaluate_folder(folder, **chosen)


_OPTIONS = {
    "data": "--data", "eval_data": "--eval-data", "columns": "a column", "eval_sequences": "--eval-sequences",
    "stride": "--stride", "diagnosed": "--diagnose", "adaptive": "--adaptive", "confidences": "--confidence",
    "include": "--include-path", "limit": "--limit", "num_fewshot": "--num-fewshot",
}  # fmt: skip


def _show(results: Any, as_json: bool, plots: Path | None) -> None:
    from fas.calibration.text import diagnosis_text
    from fas.cli.session import print_json
    from fas.report.diagnosis_plots import write_settling
    from fas.report.table import print_results

    written = [] if plots is None else write_settling(results, plots)
    if as_json:
        print_json(results.to_dict())
        return
    print_results(results)
    for found in results.extra.get("diagnosis", {}).values():
        print("\n" + diagnosis_text(found))
    if written:
        print("\nwritten: " + ", ".join(map(str, written)))
