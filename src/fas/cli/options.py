"""Options that several commands share, and how lists are written on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from fas.errors import ConfigError

N = TypeVar("N", int, float)

DTYPES = ("float32", "bfloat16", "float16")


def no_file(folder: Path | None) -> Path | None:
    """A folder for figures; raises `ConfigError`, before any work, where a file is in its place."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), None) if folder is not None else None
    if there is not None and not there.is_dir():
        raise ConfigError(f"--plots {folder}: {there} is a file, and figures need a folder; give another name")
    return folder


def known_dtype(value: str | None) -> str | None:
    """The value itself; raises `ConfigError` if it is no precision that models run in."""
    if value is not None and value not in DTYPES:
        raise ConfigError(f"dtype={value!r} is not valid: choose one of {', '.join(DTYPES)}")
    return value


def known_size(value: str | None) -> str | None:
    """The value itself; raises `ConfigError` if it is no amount of memory."""
    if value is not None:
        from fas.runtime.sizes import bytes_in

        bytes_in(value)
    return value


Seed = Annotated[int, typer.Option(help="Same seed, same result.", min=0)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes; errors only.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
DType = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16; neurons use fp32.", show_default="as stored", callback=known_dtype),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        help="Activations take at most so much, such as 2GiB: fewer sequences at once.",
        show_default=False,
        callback=known_size,
    ),
]
IntegerBits = Annotated[
    int,
    typer.Option(
        help="On a CPU, multiply spikes with weights rounded to 8, 16 or 24 bits: faster; 0: as they are.",
        show_default="0",
    ),
]
Adaptive = Annotated[
    bool, typer.Option("--adaptive", help="Each sequence stops when nothing changes any more; report mean timesteps.")
]
TextColumn = Annotated[
    str | None,
    typer.Option(help="Labelled texts: column of the text, by name or number from 0.", show_default="by task"),
]
PairColumn = Annotated[str | None, typer.Option(help="Column of its pair, if there is one.", show_default="by task")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label or score.", show_default="by task")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        help="Instead: tasks of lm-eval by name, YAML files, or files of questions: piqa,lambada_openai,my.jsonl.",
        show_default=False,
    ),
]
IncludePath = Annotated[
    list[Path] | None, typer.Option(help="With --tasks: a folder of YAML tasks.", show_default=False)
]
Limit = Annotated[
    int | None, typer.Option(help="With --tasks: at most so many items, evenly spaced.", show_default=False, min=1)
]
NumFewshot = Annotated[
    int | None, typer.Option(help="With --tasks: solved examples before each.", show_default="by task", min=0)
]
Stride = Annotated[
    int | None,
    typer.Option(
        help="Slide a window of --length tokens by so many; also per word and byte.", show_default="blocks", min=1
    ),
]
Converted = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that fas convert wrote.", show_default=False)]


def words_in(values: Iterable[str] | None) -> tuple[str, ...] | None:
    """Entries of a repeated or comma-separated option; None where it was not given.

    >>> words_in(["rate,sigma-delta"]), words_in(["rate", "sigma_delta"]), words_in(None)
    (('rate', 'sigma_delta'), ('rate', 'sigma_delta'), None)
    """
    if not values:
        return None
    return tuple(word.replace("-", "_") for value in values for word in value.replace(",", " ").split())


def names_in(values: Iterable[str] | None) -> tuple[str, ...]:
    """Entries of a repeated or comma-separated option as they stand: names and paths.

    >>> names_in(["piqa,data/my-own.jsonl", "copa"]), names_in(None)
    (('piqa', 'data/my-own.jsonl', 'copa'), ())
    """
    return tuple(word.strip() for value in values or () for word in value.split(",") if word.strip())


def numbers_in(values: Iterable[str] | None, option: str) -> tuple[int, ...] | None:
    """Whole numbers of a repeated or comma-separated option; raises `ConfigError` for anything else.

    >>> numbers_in(["2,4", "8"], "--timesteps")
    (2, 4, 8)
    """
    return _parsed(values, option, int, "whole numbers such as 4 or 2,4,8")


def fractions_in(values: Iterable[str] | None, option: str) -> tuple[float, ...] | None:
    """Numbers of a repeated or comma-separated option; raises `ConfigError` for anything else.

    >>> fractions_in([".5,0.9"], "--confidence")
    (0.5, 0.9)
    """
    return _parsed(values, option, float, "numbers such as 0.9 or 0.5,0.9")


def _parsed(values: Iterable[str] | None, option: str, parse: Callable[[str], N], what: str) -> tuple[N, ...] | None:
    if not values:
        return None
    try:
        return tuple(parse(word) for value in values for word in value.replace(",", " ").split())
    except ValueError:
        raise ConfigError(f"{option} {' '.join(values)} is not a list of {what}") from None
