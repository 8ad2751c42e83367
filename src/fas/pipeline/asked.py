"""What a command on a converted folder works on: as it was asked, else as the conversion said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fas.errors import ConfigError
from fas.pipeline.options import ConvertOptions
from fas.report.results import Results

COLUMNS = ("text_column", "pair_column", "label_column")
_KEPT = ("task", "template", *COLUMNS)
_OF_THE_DATA = ("eval_data", "length", "eval_sequences", *_KEPT)


def named(columns: Sequence[str | None]) -> dict[str, str | None]:
    """Columns of text, pair and label by the names of their options."""
    return dict(zip(COLUMNS, columns, strict=True))


def results_of(folder: Path | str) -> Results | None:
    """What ``fas convert`` measured and was asked for, if the folder has it."""
    file = Path(folder) / "results.json"
    return Results.read(file) if file.exists() else None


def as_converted(folder: Path | str, stored: Results | None, asked: Mapping[str, Any]) -> ConvertOptions:
    """Options that say on what ``folder`` is run: ``asked`` (None: nothing), else what ``stored`` says of the conversion.

    On other data only the task and its columns are as they were then. Raises `ConfigError` where neither names data.
    """
    then: dict[str, Any] = stored.extra.get("options", {}) if stored else {}
    data = asked.get("data") or then.get("data")
    if data is None:
        raise ConfigError(f"{folder} does not say what it was converted with; give --data")
    known = _OF_THE_DATA if data == then.get("data") else _KEPT
    chosen = {name: then[name] for name in known if name in then}
    chosen |= {name: value for name, value in asked.items() if value is not None and name in _OF_THE_DATA}
    if asked.get("task") not in (None, then.get("task")):
        chosen.pop("template", None)
    return ConvertOptions(str(folder), data, Path(folder), **chosen)
