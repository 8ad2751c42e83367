"""Images of a stored table, a data set of the hub or a Parquet file: read row by row, decoded only when a model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fas.errors import DataError
from fas.tasks.pictures import Picture, Stored

_NAMES = ("image_id", "img_id", "cocoid", "filename", "file_name")
"""Columns by which rows with the same image are known."""


def has_images(table: Any, image_columns: tuple[str, ...]) -> bool:
    """Whether one of the columns holds images, not names of files."""
    return any(name in table.column_names and _is_image(table, name) for name in image_columns)


def rows_with_images(where: str, table: Any, image_columns: tuple[str, ...]) -> list[tuple[Picture, Mapping[str, Any]]]:
    """Rows of a `datasets.Dataset`: the image, and all other columns with classes by their names. Raises `DataError` if it has
    no column of images, or a row has none."""
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
    stored = table.data.column(column)  # not decoded
    found: list[tuple[Picture, Mapping[str, Any]]] = []
    for number in range(len(table)):
        if not stored[number].is_valid:
            raise DataError(f"{where}, row {number + 1} has no image in column {column!r}; remove the row")
        row = dict(others[number]) if others.column_names else {}
        row |= {name: classes[row[name]] for name, classes in names.items() if row[name] is not None and row[name] >= 0}
        known = next((str(row[name]) for name in _NAMES if row.get(name) is not None), None)
        # equal names in two splits are the same image, numbers of rows are not
        place = f"{where}, row {number + 1}"
        found.append((Stored(known or place, table, column, number, place), row))
    return found


def _is_image(table: Any, name: str) -> bool:
    return type(table.features[name]).__name__ == "Image"
