"""The ``fas`` command: one thin file a command. Heavy imports stand inside the commands, so help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from fas import __version__, world
from fas.cli import (
    ablate,
    bench,
    calibrate,
    compare,
    convert,
    demo,
    energy,
    eval,
    generate,
    inspect,
    recipes,
    tune,
    verify,
)
from fas.cli.arguments import checked
from fas.cli.interrupts import in_order
from fas.cli.session import one_line
from fas.errors import FasError

app = typer.Typer(
    name="fas",
    help="Turn Hugging Face language models into spiking ones, and see how good they still are.",
    epilog="Start with: fas demo. FAS_DEBUG=1 in the environment shows where an error arose.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
_INTERRUPTED = 130  # what typer makes of Ctrl-C
_RESUMED = tuple(module.NAME for module in (ablate, calibrate, compare, convert, demo))
"""Commands that keep what they have finished; the others keep nothing."""

for _module in (
    demo,
    convert,
    calibrate,
    tune,
    eval,
    generate,
    energy,
    ablate,
    compare,
    bench,
    inspect,
    verify,
    recipes,
):
    app.command(_module.NAME, epilog=f"Example: {_module.EXAMPLE}")(_module.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fas {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 after bad input (one line on standard error), 1 where
    `verify` finds damage or after an error that nobody foresaw, 130 if interrupted.

    ``FAS_DEBUG=1`` in the environment shows the traceback of an error instead.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    came: list[int] = []
    try:
        with in_order() as came:
            code = app(args=checked(given), prog_name="fas", standalone_mode=False)
    except KeyboardInterrupt:
        return _interrupted(given, came)
    except (FasError, OSError, typer.TyperException) as error:
        if os.environ.get("FAS_DEBUG") == "1":
            raise
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        if text and world.first_to_fail():  # without a command the help was printed, and that is all
            print(f"fas: error: {one_line(text)}", file=sys.stderr)
        return 2
    except Exception as error:
        if os.environ.get("FAS_DEBUG") == "1":
            raise
        if world.first_to_fail():  # else another process has said why
            said = one_line(f"{type(error).__name__} {error}")
            print(f"fas: error: unforeseen: {said[:400]}; FAS_DEBUG=1 shows where", file=sys.stderr)
        return 1
    if code == _INTERRUPTED:
        return _interrupted(given, came)
    world.leave()
    return code if isinstance(code, int) else 0


def _interrupted(given: Sequence[str], came: Sequence[int]) -> int:
    """Say what an interruption cost, in the first process that was; the exit code of the signal."""
    resumes = bool(given) and given[0] in _RESUMED
    kept = "the same command goes on from what it had finished" if resumes else "nothing was written"
    if world.first_to_fail():
        print(f"fas: interrupted; {kept}", file=sys.stderr)
    return 128 + came[0] if came else _INTERRUPTED
