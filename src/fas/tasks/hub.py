"""Data sets of the hub, with one sentence where it gives none."""

from __future__ import annotations

from typing import Any

from fas.errors import DataError


def from_hub(source: str, local: str, split: str | None = None) -> Any:
    """``source`` (``owner/name``, or ``owner/name:configuration``): its ``split``, or all of them by name.

    Raises `DataError` if the hub does not give it; ``local``: what it could have been here, for that sentence.
    """
    from datasets import load_dataset

    name, _, configuration = source.partition(":")
    which: dict[str, Any] = {} if split is None else {"split": split}
    try:
        return load_dataset(name, configuration or None, **which)
    except Exception as error:  # the hub client raises many unrelated types; the user needs one sentence
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source} is neither a local {local} nor a data set that the hub gives: {reason}") from None
