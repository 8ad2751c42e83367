"""Data sets of the hub, with one sentence where it gives none."""

from __future__ import annotations

from typing import Any

from fas.conversion.hub import quickly, why_not
from fas.errors import DataError
from fas.tasks.reading.contents import kind_of


def from_hub(source: str, local: str, split: str | None = None) -> Any:
    """``source`` (``owner/name``, or ``owner/name:configuration``): its ``split``, or all of them by name.

    Raises `DataError` if the hub does not give it, for a URL, and for what lies here; ``local``: what it could have been here,
    for that sentence.
    """
    name, _, configuration = source.partition(":")
    if "://" in source or not name.strip():
        raise DataError(f"{source!r} is no {local} and no data set of the hub; download what it means, and name that")
    if kind_of(name.partition("@")[0]) is not None:  # the library would read it by rules of its own
        raise DataError(
            f"{name} lies here, and only data sets of the hub have a configuration or a split behind their name"
        )
    from datasets import load_dataset

    which: dict[str, Any] = {} if split is None else {"split": split}
    try:
        with quickly():
            return load_dataset(name, configuration or None, **which)
    except Exception as error:  # the hub client raises many unrelated types; the user needs one sentence
        if (sentence := why_not(name, error, "data set")) is not None:
            raise DataError(sentence) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source} is neither a local {local} nor a data set that the hub gives: {reason}") from None
