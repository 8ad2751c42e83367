"""Folders of demonstrations: new ones, and those that a demonstration has written before."""

from __future__ import annotations

import shutil
from pathlib import Path

from fas.errors import CheckpointError

_BEFORE_MODELS = {"shapes"}
"""What a demonstration writes before it begins to convert."""


def begin_anew(out: Path) -> None:
    """Remove the finished model of an earlier demonstration in ``out``; an interrupted one stays and goes on.

    Raises `CheckpointError` if ``out`` holds anything and no demonstration wrote there, for its files would be replaced.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; a demonstration writes a folder there, so choose another --out")
    ours = any((out / name / "run.json").exists() for name in ("model", "model.work"))
    strange = sorted({file.name for file in out.glob("*")} - _BEFORE_MODELS)
    if strange and not ours:
        raise CheckpointError(
            f"{out} holds {strange[0]}, and no demonstration wrote there; choose a folder that is new or empty"
        )
    if (out / "model" / "run.json").exists():  # a finished conversion of ours
        shutil.rmtree(out / "model")
