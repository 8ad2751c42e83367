"""What all commands share: quiet libraries, warnings as one line, progress that goes away, JSON on standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fas import world
from fas.cli.show import progress_on
from fas.errors import ConfigError
from fas.progress import Progress

_QUIET_LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_TALKING = ("torchao", "torch.utils._pytree")
"""Loggers that speak of kernels for GPUs and of deprecations whenever torchao is installed, for transformers imports it."""


@contextmanager
def session(quiet: bool = False, parallel: bool = False) -> Iterator[Progress]:
    """Progress for one command, while other libraries are silent and warnings become ``note:`` lines.

    Only commands that are ``parallel`` run under torchrun, where the first process alone shows anything; `ConfigError` for
    others.
    """
    rank, size = world.launched()
    if size > 1 and not parallel:
        raise ConfigError("this command runs in one process; start it without torchrun")
    if size > 1:  # DDP says in C++ that it looked for unused parameters and found none
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    silence_libraries()
    progress = progress_on(quiet=quiet or rank > 0)
    handler = _NoteHandler(progress)
    logger = logging.getLogger("fas")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("once")
            for for_developers in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", for_developers)
            warnings.showwarning = _notes_on(progress)
            yield progress
    finally:
        logger.removeHandler(handler)
        getattr(progress, "close", lambda: None)()


def _notes_on(progress: Progress) -> Callable[..., None]:
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = one_line(message)
        if text not in shown:  # "once" forgets whenever a filter changes
            shown.add(text)
            progress.note(f"note: {text}")

    return show


class _NoteHandler(logging.Handler):
    """Shows what FAS logs as a warning."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self.progress.note(f"note: {one_line(record.getMessage())}")


def silence_libraries() -> None:
    """No bars and no warnings of the Hugging Face libraries, unless the user's environment asks for them."""
    for name, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    for name in _TALKING:
        logging.getLogger(name).setLevel(logging.ERROR)
    if "transformers" in sys.modules:  # too late for the environment
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def one_line(message: object) -> str:
    """A message of several lines in one."""
    return " ".join(str(message).split())


def print_json(values: dict[str, Any]) -> None:
    """The only thing that a command with ``--json`` prints to standard output."""
    print(json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False))
