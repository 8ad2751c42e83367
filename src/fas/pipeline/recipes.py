"""Recipes: options of a conversion by name, with what they reproduce, so that a row of a paper is one command.

A recipe is YAML: fields of `ConvertOptions`, and beside them ``extends`` (another recipe that it changes), ``about`` (`About`),
``architecture`` and ``examples``, from which a dry run needs no network, and ``compare`` (`Compared`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import fas
from fas.errors import ConfigError
from fas.pipeline.about import About, Block, ExampleCounts
from fas.pipeline.options import ConvertOptions
from fas.report.plan_text import figure_text
from fas.tasks.glue import LANGUAGE_MODELING, VISUAL, text_task

_LISTS = ("codings", "timesteps", "steps", "targets", "ignore")
_BLOCKS = ("extends", "about", "architecture", "examples", "compare")


class Counts(ExampleCounts):
    """Of images of classes, also how many classes there are."""

    classes: int | None = None


class Compared(Block):
    """What ``fas compare --recipe`` measures where the command does not say it."""

    methods: tuple[str, ...] = ()
    timesteps: tuple[int, ...] = ()

    @staticmethod
    def command(recipe: str) -> str:
        """What to type."""
        return f"fas compare --recipe {recipe} --out {recipe}-compared"


@dataclass(frozen=True)
class Recipe:
    """One file, with what it extends."""

    name: str
    options: dict[str, Any]
    """Fields of `ConvertOptions` by name."""
    about: About | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    """``model_type`` and settings of the model's configuration, where neither folder nor hub can be asked."""
    examples: Counts | None = None
    compare: Compared | None = None


def recipe_folder() -> Path:
    """Where the recipes are: beside the installed package's modules, or at the root of a checkout."""
    inside = Path(fas.__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(fas.__file__).parents[2] / "recipes"


def recipe_names() -> list[str]:
    """Names of all recipes that come with FAS; files that begin with ``_`` are only extended."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml") if not path.name.startswith("_"))


def read_recipe(name: str | Path) -> Recipe:
    """The recipe called ``name``, or in the file of that name.

    Raises `ConfigError` for a missing file, what is no YAML, an unknown key, or a circle of ``extends``.
    """
    path = _place(name)
    values = _resolved(path, [])
    if "coding" in values:
        values["codings"] = values.pop("coding")
    known = [option.name for option in fields(ConvertOptions)]
    unknown = sorted(set(map(str, values)) - {*known, *_BLOCKS})
    if unknown:
        raise ConfigError(f"{path}: unknown option {unknown[0]!r}; known are {', '.join([*known, *_BLOCKS])}")
    options = {key: _typed(key, value) for key, value in values.items() if key in known}
    about, compare = _block(path, "about", About, values), _block(path, "compare", Compared, values)
    examples = _block(path, "examples", Counts, values)
    return Recipe(path.stem, options, about, values.get("architecture") or {}, examples, compare)


def recipe_options(given: Mapping[str, Any]) -> ConvertOptions:
    """Options by name as `ConvertOptions`, with the data of the task's own where none is given.

    Raises `ConfigError` for what is missing or not valid.
    """
    options = dict(given)
    task = options.get("task", LANGUAGE_MODELING)
    if task not in (LANGUAGE_MODELING, *VISUAL) and (hub := text_task(task).hub):
        options.setdefault("data", hub)
    missing = [f"--{name}" for name in ("model", "data", "out") if name not in options]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given as option or in the recipe; see --help")
    return ConvertOptions(**options)


def _place(name: str | Path, beside: Path | None = None) -> Path:
    """The file of a recipe: a path, or a bare name of one in ``beside``, or among those of FAS."""
    path = Path(name)
    if path.is_file():
        return path
    for folder in [*([beside] if beside is not None else []), recipe_folder()] if len(path.parts) == 1 else []:
        named = folder / f"{str(name).removesuffix('.yaml')}.yaml"
        if named.is_file():
            return named
    known = ", ".join(recipe_names())
    raise ConfigError(f"{name} is neither a file nor a recipe of FAS; those are {known}")


def _resolved(path: Path, seen: Iterable[Path]) -> dict[str, Any]:
    """The values of ``path`` over those of the recipe that it extends; blocks are merged, lists replaced."""
    seen = [*seen, path.resolve()]
    values = _yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    below = _place(str(base), path.parent)
    if below.resolve() in seen:
        raise ConfigError(f"{path} extends {base}, which extends it in turn")
    return _merged(_resolved(below, seen), values)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``.

    >>> _merged({"a": {"x": 1, "y": 2}, "b": [1]}, {"a": {"y": 3}, "b": [2]})
    {'a': {'x': 1, 'y': 3}, 'b': [2]}
    """
    both = {key for key in above if isinstance(below.get(key), dict) and isinstance(above[key], dict)}
    return below | above | {key: _merged(below[key], above[key]) for key in both}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must have lines of the form 'coverage: linear'")
    return values


def _typed(name: str, value: Any) -> Any:
    """A value of YAML as the option ``name`` has it."""
    if name in _LISTS and value is not None:
        return tuple(value) if isinstance(value, list) else (value,)
    return Path(str(value)) if name == "out" else value


def _block(path: Path, name: str, kind: type[Block], values: dict[str, Any]) -> Any:
    if values.get(name) is None:
        return None
    try:
        found = kind.model_validate(values[name])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"])))
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    known = {option.name for option in fields(ConvertOptions)}
    for machine in getattr(found, "machines", ()):
        if strange := sorted(set(machine.options) - known):
            raise ConfigError(f"{path}: about.machines: unknown option {strange[0]!r}")
    return found


def listed() -> list[dict[str, str]]:
    """Of each recipe of FAS: name, model, data, what it reproduces, and the first figure that was found."""
    return [_line(read_recipe(name)) for name in recipe_names()]


def _line(recipe: Recipe) -> dict[str, str]:
    about = recipe.about
    if about is None:
        raise ConfigError(f"recipe {recipe.name} says nothing about itself; give it a block 'about'")
    entry = next((entry for entry in about.published if entry.figure is not None), about.published[0])
    return {
        "name": recipe.name,
        "title": about.title,
        "model": recipe.options["model"],
        "data": recipe.options.get("data", f"GLUE {recipe.options.get('task')}"),
        "reproduces": about.reproduces,
        "published": f"{figure_text(entry.model_dump())}, {entry.of}",
        "source": entry.source,
    }


def table() -> str:
    """The recipes as rows of Markdown, for docs/recipes.md."""
    head = ["| recipe | model | reproduces | published | source |", "|---|---|---|---|---|"]
    rows = [
        f"| `{line['name']}` | {line['title']} | {line['reproduces']} | {line['published']} | {line['source']} |"
        for line in listed()
    ]
    return "\n".join([*head, *rows])
