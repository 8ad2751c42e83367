"""A hub that cannot be reached is told from a model that it does not have, in seconds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from datasets import config as of_datasets
from huggingface_hub import constants

from fas.cli import main
from fas.conversion import hub
from fas.errors import DataError
from fas.tasks.hub import from_hub

NAME = "nobody/nothing"


class Hub(BaseHTTPRequestHandler):
    """Has no models; what its paths answer is ``refusal``."""

    refusal = (404, "RepoNotFound")

    def do_HEAD(self) -> None:
        status, code = (200, "") if self.path == "/" else self.refusal
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(refusal: tuple[int, str]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfTest", (Hub,), {"refusal": refusal}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is cached, and nothing says that the hub is not to be asked."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(of_datasets, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_asked", {})


def at(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", place)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place + "/{repo_id}/resolve/{revision}/{filename}")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    begun = time.monotonic()
    assert main([*arguments, "--quiet"]) == 2
    assert time.monotonic() - begun < 8  # transformers alone takes 23 s for each file
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


COMMANDS = [
    ["inspect", NAME],
    ["convert", "--model", NAME, "--data", "builtin", "--out", "never"],
    ["convert", "--model", NAME, "--data", "builtin", "--out", "never", "--dry-run"],
    ["generate", NAME, "--prompt", "x"],
    ["eval", NAME],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda words: " ".join(words[::6]))
def test_a_dead_network(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}")  # nobody listens
    said = refused(arguments, capsys)
    assert f"{NAME} is neither a folder here nor in the cache" in said
    assert "could not be reached" in said
    assert "whether it has such a model is not known" in said


def test_a_hub_that_never_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        at(monkeypatch, f"http://127.0.0.1:{deaf.getsockname()[1]}")
        assert "could not be reached" in refused(COMMANDS[0], capsys)
        with pytest.raises(DataError, match=r"could not be reached.*whether it has such a data set is not known"):
            from_hub(NAME, "file")


def test_an_offline_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_ask", lambda place: pytest.fail("the hub was asked"))
    assert "the hub was not asked, for HF_HUB_OFFLINE is set" in refused(COMMANDS[0], capsys)


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((404, "RepoNotFound"), "nor a model of the hub, which was asked"),
        ((403, "GatedRepo"), "is a model of the hub that asks for consent"),
        ((404, "RevisionNotFound"), "not in the version"),
    ],
)
def test_what_a_hub_says(
    refusal: tuple[int, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(refusal) as place:
        at(monkeypatch, place)
        assert said in refused(COMMANDS[0], capsys)


def test_what_is_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "reads owner/name" in refused(["inspect", "/nowhere/at/all"], capsys)


def test_the_answer_is_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "_ask", lambda place: asked.append(place) or "dead")
    for _ in range(3):
        with hub.quickly():
            assert constants.HF_HUB_OFFLINE
        assert not constants.HF_HUB_OFFLINE
    assert len(asked) == 1
    monkeypatch.setattr(hub, "REMEMBERED", 0.0)
    assert hub.unreachable() == "dead"
    assert len(asked) == 2
