"""What commands say when they are interrupted, and arguments that no command gets to see."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import fas.cli
from fas.cli import arguments


def interrupted(monkeypatch: pytest.MonkeyPatch, command: str, number: int) -> int:
    """Exit code of a command that ``number`` meets."""

    def app(**_: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(fas.cli, "app", app)
    return fas.cli.main([command])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["convert", "generate", "tune"])
def test_an_interrupted_command_says_what_is_true(monkeypatch, capsys, command: str, number: int, code: int) -> None:
    before = signal.getsignal(number)
    assert interrupted(monkeypatch, command, number) == code
    kept = "goes on from what it had finished" if command == "convert" else "nothing was written"
    assert capsys.readouterr().err.endswith(f"{kept}\n")
    assert signal.getsignal(number) is before


def test_the_second_signal_ends_the_process(monkeypatch) -> None:
    def app(**_: object) -> None:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    monkeypatch.setattr(fas.cli, "app", app)
    assert fas.cli.main(["eval"]) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["convert", "--data", ""], "--data is empty"),
        (["convert", "--out="], "--out is empty"),
        (["convert", "--out", os.fsdecode(b"r\xff")], "argument 3 .* is not UTF-8"),
    ],
)
def test_names_of_nothing_and_of_no_text_are_refused_at_once(capsys, given: list[str], said: str) -> None:
    assert fas.cli.main(given) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(fas.errors.ConfigError, match=said):
        arguments.checked(given)


def test_homes_are_expanded_where_a_place_is_named(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = ["generate", "~/snn", "--prompt", "~/x", "--out", "~/a", "--data=~/b"]
    assert arguments.checked(given) == [
        "generate",
        "~/snn",
        "--prompt",
        "~/x",
        "--out",
        "/home/me/a",
        "--data=/home/me/b",
    ]


def test_figures_do_not_go_into_a_file(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert fas.cli.main(["energy", "builtin", "--plots", str(tmp_path / "file")]) == 2
    assert "is a file, and figures need a folder" in capsys.readouterr().err


def test_a_demonstration_leaves_other_peoples_files_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "report.html").write_text("mine")
    assert fas.cli.main(["demo", "--out", str(tmp_path), "--quiet"]) == 2
    assert "holds report.html, and no demonstration wrote there" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "mine"
