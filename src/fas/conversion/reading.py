"""Reads configurations with transformers, so that whatever a folder holds ends as one sentence and no code of it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from fas.conversion.files import read_json
from fas.conversion.hub import quickly, why_not
from fas.conversion.integrity import check_description
from fas.conversion.manifest import CONFIG
from fas.errors import CheckpointError, FasError

LONGEST = 300
"""Characters of a library's message that are shown."""


@contextmanager
def reading(model: str | Path, place: str | Path | None = None) -> Iterator[None]:
    """Raise `FasError`, one sentence, for whatever a library raises while it reads ``model``, which lies in ``place`` (None: of
    that name). Where that is no folder the hub is asked, which has seconds to answer."""
    remote = not Path(model if place is None else place).exists()
    try:
        with quickly() if remote else nullcontext():
            yield
    except FasError:
        raise
    except Exception as error:
        if remote and (sentence := why_not(str(model), error)) is not None:
            raise FasError(sentence) from error
        text = " ".join(str(error).split())
        kind = "" if isinstance(error, OSError | ValueError | RuntimeError) and text else f"{type(error).__name__} "
        cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
        raise FasError(f"{model} cannot be loaded: {kind}{cut}") from error


def configuration(model: str, place: str, here: bool = False) -> Any:
    """The configuration in ``place`` (folder or hub id), called ``model``; ``here``: the hub is not asked, its cache is.

    Raises `CheckpointError` for one that is not as it was saved, and `FasError` for one that cannot be read or wants code of
    its own to run.
    """
    if (Path(place) / CONFIG).exists():
        quantization = read_json(Path(place) / CONFIG).get("quantization_config")
        if quantization is not None and not isinstance(quantization, dict):
            raise CheckpointError(
                f"{model}: quantization_config in its config.json is a {type(quantization).__name__} where a JSON object is "
                "expected; put the original file back"
            )
        check_description(Path(place))
    with reading(model, place):
        raw, _ = PreTrainedConfig.get_config_dict(place, local_files_only=here)
        if "auto_map" in raw:
            raise FasError(
                f"{model} is a model with code of its own (auto_map in its config.json), which FAS does not run; choose one "
                "whose architecture transformers has"
            )
        return AutoConfig.from_pretrained(place, local_files_only=here, trust_remote_code=False)
