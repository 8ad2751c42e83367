"""``fas bench``: speed as ratios, all in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fas.cli.options import AsJson, Quiet, Seed, numbers_in, words_in

NAME = "bench"
EXAMPLE = "fas bench --what neuron,prefill --timesteps 8"


def command(
    model: Annotated[
        str | None, typer.Option(help="Hub id or local folder.", show_default="GPT-2 small, random weights")
    ] = None,
    what: Annotated[
        list[str] | None,
        typer.Option(
            help="neuron, prefill, decode, decode_relu (sparse), stage1_step, stage2.",
            show_default="all",
        ),
    ] = None,
    coverage: Annotated[list[str] | None, typer.Option(help="What becomes spikes.", show_default="ffn,linear")] = None,
    coding: Annotated[list[str] | None, typer.Option(help="sigma_delta, rate.", show_default="sigma_delta")] = None,
    timesteps: Annotated[list[str] | None, typer.Option(help="T, one or several.", show_default="4,8")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16.", show_default="both")] = None,
    levels: Annotated[int, typer.Option(help="L of the grid.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 128,
    rounds: Annotated[int, typer.Option(help="Timings of each side; ratios are of one round.")] = 7,
    integer_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of the weights that spikes are multiplied with: 8, 16, 24, or 0 for as they are.",
            show_default="16 in float32, 8 in bfloat16",
        ),
    ] = None,
    cache: Annotated[list[str] | None, typer.Option(help="In decoding: exact, settled.", show_default="exact")] = None,
    threads: Annotated[int | None, typer.Option(help="Of this process.", show_default="PyTorch's")] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for a GPU, to which all ratios belong then.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="JSON to write.", show_default=False)] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time neurons, prefill, decoding, Stage 1 and 2 against the ANN, a naive simulation and other code.

    Both sides of a ratio are timed in turns within one round; shown are the median and the spread over rounds.
    """
    from fas.cli.session import print_json, session

    with session(quiet) as progress:
        import json

        from fas.pipeline.bench import WHATS, BenchOptions, run_bench
        from fas.report.speed import as_table
        from fas.storage import write_whole

        options = BenchOptions(
            model, tuple(words_in(what) or WHATS), tuple(words_in(coverage) or ("ffn", "linear")),
            tuple(word.replace("-", "_") for word in words_in(coding) or ("sigma_delta",)),
            numbers_in(timesteps, "--timesteps") or (4, 8), tuple(words_in(dtype) or ("float32", "bfloat16")),
            levels, length, rounds, integer_bits, threads, device, seed, tuple(words_in(cache) or ("exact",)),
        )  # fmt: skip
        results = run_bench(options, progress)
        if out is not None:
            write_whole(out, json.dumps(results.to_dict(), indent=1) + "\n")
    print_json(results.to_dict()) if as_json else print(as_table(results.to_dict()))
