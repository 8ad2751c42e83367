"""A resumable run: finished stages lie in ``OUT.work`` and the result appears as ``OUT`` only when it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fas import world
from fas.errors import CheckpointError
from fas.storage import remove_whole, whole_folder, writing


def _fingerprint(marker: Path) -> str | None:
    try:
        return json.loads(marker.read_text())["fingerprint"]
    except (ValueError, KeyError, TypeError):  # a marker that is not ours fits nothing
        return None


class Workspace:
    """Stages of one run, each written beside and renamed, so that a stage exists whole or not at all.

    Of several processes (`fas.world`) the first writes and says what is there; all read. Raises `CheckpointError` if ``out``
    or its work folder belongs to a run with other arguments.
    """

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.out = out = out.resolve()
        self.folder = out.with_name(out.name + ".work")
        self.fingerprint = fingerprint
        for place, state in ((self.out, "was finished"), (self.folder, "was begun")):
            if not place.exists():
                continue
            found = place / "run.json"
            if not found.exists():
                raise CheckpointError(f"{place} exists and is no conversion of FAS; choose another --out")
            if _fingerprint(found) != fingerprint:
                raise CheckpointError(
                    f"{place} {state} with other arguments, model or data; repeat those, choose another --out, or remove it"
                )

    @property
    def finished(self) -> bool:
        return world.once(self.out.exists)

    def open(self) -> bool:
        """Make the work folder of a new run; whether one was there, of a run that was interrupted."""

        def opened() -> bool:
            if self.folder.exists():
                return True
            self._write_marker(self.folder)
            return False

        resumed = world.once(opened)
        if not self.folder.exists():
            raise CheckpointError(
                f"{self.folder} is not seen by process {world.rank()}; --out must be on a disk that all machines share"
            )
        return resumed

    def _write_marker(self, folder: Path) -> None:
        with whole_folder(folder) as staged:
            (staged / "run.json").write_text(json.dumps({"fingerprint": self.fingerprint}))

    def has(self, stage: str) -> bool:
        return world.once((self.folder / stage).exists)

    def path(self, stage: str) -> Path:
        return self.folder / stage

    def store(self, stage: str, write: Callable[[Path], Any]) -> Path:
        """Let ``write`` fill a folder and rename it to ``stage``."""
        return world.once(lambda: self._store(stage, write))

    def _store(self, stage: str, write: Callable[[Path], Any]) -> Path:
        final = self.folder / stage
        shutil.rmtree(final, ignore_errors=True)  # stored by a run that was killed before it went on
        with whole_folder(final, "finished stages are kept") as staged:
            write(staged)
        return final

    def store_json(self, stage: str, value: Any) -> Any:
        """Store one JSON value as a stage of its own."""
        self.store(stage, lambda folder: (folder / "value.json").write_text(json.dumps(value)))
        return value

    def read_json(self, stage: str) -> Any:
        return json.loads((self.folder / stage / "value.json").read_text())

    def finish(self, write: Callable[[Path], Any]) -> None:
        """Let ``write`` fill the result, make it ``out``, and remove the stages."""

        def whole(folder: Path) -> None:
            write(folder)
            (folder / "run.json").write_text(json.dumps({"fingerprint": self.fingerprint}))

        def finished() -> None:
            staged = self._store("result", whole)
            with writing(self.out, "finished stages are kept"):
                staged.rename(self.out)

        world.once(finished)
        self.clear()

    def clear(self) -> None:
        """Remove the stages of a finished run."""
        world.once(lambda: remove_whole(self.folder))
