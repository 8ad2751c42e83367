"""The errors a user can meet: each message is one sentence that says what, where, the values and the remedy."""

from __future__ import annotations


class FasError(ValueError):
    """Base of every error that bad input can cause; the command line prints its message and exits with 2."""


class ConfigError(FasError):
    """A conversion was described wrongly."""


class UnsupportedModelError(FasError):
    """A model, or a module inside it, that FAS does not know how to convert."""


class CheckpointError(FasError):
    """A folder that cannot be loaded as, or saved as, a converted model."""


class DiskError(CheckpointError):
    """A disk that refuses a file or a folder; what goes on in spite of other errors stops here."""


class DataError(FasError):
    """Text or data that cannot be used."""


def with_extra(extra: str) -> str:
    """What to type for the packages of an ``extra`` of FAS, which is on no package index and is installed from its clone."""
    return f"in a clone of FAS: pip install '.[{extra}]'"
