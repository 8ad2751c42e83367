"""``fas verify``: a saved folder, and the control in it, against their manifests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fas.conversion.files import tensors_of, weight_files
from fas.conversion.integrity import problems_in
from fas.conversion.manifest import NAME
from fas.errors import CheckpointError
from fas.progress import Progress


@dataclass(frozen=True)
class Verified:
    """How many tensors were read, and what is wrong, a sentence each."""

    tensors: int
    problems: list[str]


def verify(folder: Path, progress: Progress) -> Verified:
    """Compare checksums of all tensors, the configuration and the small files with the manifest.

    Raises `CheckpointError` for a folder without manifest, or without weights.
    """
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} is no folder with a config.json")
    places = [folder, *([folder / "control"] if (folder / "control" / NAME).exists() else [])]
    total = sum(len(tensors_of(weight_files(place))) for place in places)
    progress.start("verifying tensors", total)
    problems = [problem for place in places for problem in problems_in(place, lambda name: progress.advance())]
    progress.done()
    return Verified(total, problems)
