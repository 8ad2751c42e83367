"""``fas inspect``: what would spike, what would stay analog, how much memory it takes; converts nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from fas.cli.options import AsJson, Quiet, known_dtype

NAME = "inspect"
EXAMPLE = "fas inspect openai-community/gpt2 --coverage ffn"

_MEMORY = "What memory is estimated for"


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, converted folder, or builtin.")],
    coverage: Annotated[
        str | None,
        typer.Option(help="ffn, linear, attention or full; default linear, or as converted.", show_default=False),
    ] = None,
    timesteps: Annotated[int, typer.Option(help="T.", rich_help_panel=_MEMORY, min=1)] = 8,
    batch_size: Annotated[int, typer.Option(help="Sequences in a batch.", rich_help_panel=_MEMORY, min=1)] = 8,
    length: Annotated[int, typer.Option(help="Tokens in a sequence.", rich_help_panel=_MEMORY, min=1)] = 256,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16.", rich_help_panel=_MEMORY, callback=known_dtype)
    ] = "float32",
    data: Annotated[
        str | None,
        typer.Option(help="Text: also show massive activations on it (loads the weights).", show_default=False),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show a model's sites, what stays analog, and rough memory; from its configuration, so large models are cheap."""
    from fas.cli.session import print_json, session

    with session(quiet) as progress:
        from fas.pipeline.load import resolve
        from fas.report.inspection import Workload, inspect_model
        from fas.report.inspection_text import as_text

        found = inspect_model(model, resolve(model), coverage, Workload(timesteps, batch_size, length, dtype))
        from fas.pipeline.inspect_data import massive_on, massive_text

        massive = None if data is None else massive_on(model, data, length, progress)
    if as_json:
        print_json(found.to_dict() | ({"massive_activations": massive} if massive else {}))
    else:
        print(as_text(found))
        if massive is not None:
            print("\n" + massive_text(massive))
