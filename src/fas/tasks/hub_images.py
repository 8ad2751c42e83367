"""Images of a data set of the hub: read row by row, decoded only when a model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fas.errors import DataError
from fas.tasks.hub import from_hub
from fas.tasks.pictures import Picture, Stored

EVALUATION = ("validation", "valid", "val", "dev", "test")
_NAMES = ("image_id", "img_id", "cocoid", "filename", "file_name")
"""Columns by which rows with the same image are known."""


def hub_rows(source: str, image_columns: tuple[str, ...]) -> dict[str, list[tuple[Picture, Mapping[str, Any]]]]:
    """Rows of ``source`` (``owner/name``, or ``owner/name:configuration``) by split: the image, and all other columns with
    classes by their names. Raises `DataError` if the hub does not give it, or it has no column of images."""
    tables = from_hub(source, "folder or table")
    return {split: _rows(f"{source}, {split}", table, image_columns) for split, table in tables.items()}


def _rows(where: str, table: Any, image_columns: tuple[str, ...]) -> list[tuple[Picture, Mapping[str, Any]]]:
    column = next((name for name in image_columns if name in table.column_names and _is_image(table, name)), None)
    if column is None:
        raise DataError(f"{where} has {', '.join(table.column_names)}, none of which holds images")
    # without this, each row would decode its image
    others = table.remove_columns([name for name in table.column_names if _is_image(table, name)])
    names = {
        name: kind.names
        for name, kind in others.features.items()
        if getattr(kind, "names", None) and hasattr(kind, "int2str")
    }
    found: list[tuple[Picture, Mapping[str, Any]]] = []
    for number in range(len(table)):
        row = dict(others[number]) if others.column_names else {}
        row |= {name: classes[row[name]] for name, classes in names.items() if row[name] is not None and row[name] >= 0}
        known = next((str(row[name]) for name in _NAMES if row.get(name) is not None), None)
        # equal names in two splits are the same image, numbers of rows are not
        found.append((Stored(known or f"{where}, row {number + 1}", table, column, number), row))
    return found


def _is_image(table: Any, name: str) -> bool:
    return type(table.features[name]).__name__ == "Image"
