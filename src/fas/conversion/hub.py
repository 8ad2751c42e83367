"""Whether the hub of Hugging Face can be reached, in seconds; and what cannot be had from it, told apart in one sentence."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

PATIENCE = 5.0
"""Seconds that the hub has for an answer."""
REMEMBERED = 60.0
"""Seconds for which it is not asked again."""

_asked: dict[str, tuple[float, str | None]] = {}


@contextmanager
def quickly() -> Iterator[None]:
    """Inside, transformers and datasets take from their caches alone what they would ask a hub for that does not answer.

    Their own patience is minutes: each file is asked for six times.
    """
    with ExitStack() as stack:
        if not is_offline_mode() and unreachable() is not None:
            stack.enter_context(patch.object(constants, "HF_HUB_OFFLINE", True))
            if "datasets" in sys.modules:
                from datasets import config

                stack.enter_context(patch.object(config, "HF_HUB_OFFLINE", True))
        yield


def unreachable() -> str | None:
    """Why the hub does not answer within `PATIENCE`; None where it does."""
    place = constants.ENDPOINT
    known = _asked.get(place)
    if known is not None and time.monotonic() - known[0] < REMEMBERED:
        return known[1]
    said: list[str | None] = []
    # names are looked up without a timeout, so a thread does it
    asking = threading.Thread(target=lambda: said.append(_ask(place)), daemon=True)
    asking.start()
    asking.join(PATIENCE + 1)
    reason = said[0] if said else "no answer"
    _asked[place] = time.monotonic(), reason
    return reason


def _ask(place: str) -> str | None:
    try:
        answer = get_session().head(place, timeout=PATIENCE)
    except Exception as error:  # of sockets, proxies, certificates: whatever it is, the hub cannot be had
        return " ".join(str(error).split()) or type(error).__name__
    return f"it answers {answer.status_code}" if answer.status_code >= 500 else None


def why_not(name: str, error: BaseException, what: str = "model") -> str | None:
    """What the hub, or its absence, has to do with ``error`` about ``name``, as one sentence; None: nothing."""
    chain = list(_chain(error))

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    link = "datasets/" if what == "data set" else ""
    if has(GatedRepoError):
        return (
            f"{name} is a {what} of the hub that asks for consent; give it on {constants.ENDPOINT}/{link}{name}, then: "
            "hf auth login"
        )
    if has(RepositoryNotFoundError):
        return (
            f"{name} is neither a folder here nor a {what} of the hub, which was asked; mend the name (or, where it is "
            "private: hf auth login)"
        )
    if has(HFValidationError):
        return f"{name} is neither a folder here nor the name of a {what} of the hub, which reads owner/name"
    if has(RevisionNotFoundError):
        return f"{name} is a {what} of the hub, but not in the version that was asked for"
    if has(LocalEntryNotFoundError, OfflineModeIsEnabled) or any(_is_of_network(one) for one in chain):
        here = f"{name} is neither a folder here nor in the cache ({constants.HF_HUB_CACHE})"
        if is_offline_mode():
            return f"{here}, and the hub was not asked, for HF_HUB_OFFLINE is set; unset it, or give a folder"
        reason = unreachable()
        told = "it broke off" if reason is None else reason
        return (
            f"{here}, and the hub {constants.ENDPOINT} could not be reached ({told}); whether it has such a {what} is not "
            "known: mend the connection, or give a folder"
        )
    return None


def _is_of_network(error: BaseException) -> bool:
    """Whether a connection failed: sockets' own errors, or those of the client, whose package has several names."""
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(("httpx", "httpcore"))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
