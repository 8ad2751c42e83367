"""Arguments before a command sees them: names that no library can write, empty places, homes that no shell has expanded."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fas.errors import ConfigError

PLACES = ("--model", "--data", "--eval-data", "--mlm-data", "--out", "--plots", "--work", "--energy-model", "--recipe")
"""Options that name a file, a folder, or what may be one."""


def checked(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with ``~`` expanded where a place is named.

    Raises `ConfigError` for an argument that is not UTF-8 (tokenizers and safetensors write no such names) and for a place
    whose name is empty.
    """
    for number, argument in enumerate(arguments, 1):
        if any("\ud800" <= letter <= "\udfff" for letter in argument):  # how Python holds bytes that are no UTF-8
            shown = argument.encode("utf-8", "backslashreplace").decode()
            raise ConfigError(f"argument {number} ({shown}) is not UTF-8, which model files need; choose another name")
    found = list(arguments)
    for number, argument in enumerate(found):
        name, equals, value = argument.partition("=")
        if name in PLACES and equals:
            found[number] = f"{name}={_place(name, value)}"
        elif number and found[number - 1] in PLACES:
            found[number] = _place(found[number - 1], argument)
    return found


def _place(name: str, value: str) -> str:
    if not value.strip():
        raise ConfigError(f"{name} is empty; name a file or a folder, or leave {name} out")
    return os.path.expanduser(value)
