"""Broken, odd and ordinary data: read whole and told, or refused in one sentence; never a traceback, never silence."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from data_cases import made
from data_files import CLASSES, FORBIDDEN, IMAGES, QUESTIONS, QUESTIONS_OF_IMAGES, READ, REFUSED, SCORES, TEXT, Case

from fas.errors import FasError
from fas.progress import Silent
from fas.tasks.choices import settings_of
from fas.tasks.glue import text_task
from fas.tasks.labelled import Labelled, evaluation_rows, load_labelled
from fas.tasks.reading.journal import Reading
from fas.tasks.text import evaluation_text, load_text
from fas.tasks.visual import Seen, evaluation_seen, load_visual

SECONDS = 10
FEW, ALL = range(60), range(2000)


class Noted(Silent):
    """Keeps when something was said last."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def note(self, text: str) -> None:
        self.last = time.monotonic()

    def start(self, title: str, total: int | None = None) -> None:
        self.last = time.monotonic()


@contextmanager
def patience() -> Iterator[None]:
    """Raise `TimeoutError` after `SECONDS`."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def loaded(case: Case, reading: Reading) -> tuple[list[str], list[str], list[str]]:
    """Texts (or names of images) that are trained on, held out and evaluated on."""
    data = str(case.data)
    if case.task == TEXT:
        text = load_text(data, None, None, reading)
        return text.training, text.held_out, text.evaluation
    if case.task in (CLASSES, SCORES):
        rows = load_labelled(text_task(case.task), data, None, reading)
        return texts_of(rows.training), texts_of(rows.held_out), texts_of(rows.evaluation)
    if case.task == QUESTIONS:
        found = settings_of(case.data, reading)["custom_dataset"]()["test"]
        return [], [], [row["query"] for row in found]
    seen = load_visual(case.task, data, None, reading)
    return names_of(seen.training), names_of(seen.held_out), names_of(seen.evaluation)


def texts_of(rows: list[Labelled]) -> list[str]:
    return [row.text for row in rows]


def names_of(rows: list[Seen]) -> list[str]:
    return [row.image.name for row in rows]


def evaluated(case: Case) -> list[str]:
    """What is evaluated on where nothing is trained."""
    data = str(case.data)
    if case.task == TEXT:
        return evaluation_text(data)
    if case.task in (CLASSES, SCORES):
        return texts_of(evaluation_rows(text_task(case.task), data))
    return names_of(evaluation_seen(case.task, data))


def judged(case: Case) -> tuple[str, str]:
    """What became of ``case`` (``read``, ``refused``), and what is wrong with that; empty: nothing."""
    reading = Reading(Noted())
    try:
        with patience():
            used = loaded(case, reading)
            alone = used[2] if case.task == QUESTIONS else evaluated(case)
    except FasError as error:
        message = str(error)
        if not message.isprintable() or not 10 < len(message) < 1000:
            return "refused", f"no sentence: {message!r}"
        return "refused", f"refused: {message}" if case.fate == READ else ""
    except TimeoutError:
        return "hung", "it hung"
    except Exception as error:
        return "traceback", f"traceback: {type(error).__name__}: {error}"
    if case.fate == REFUSED:
        return "read", f"read: {used[0][:2]}"
    wrong = "" if used[2] == alone else f"other text is evaluated where nothing is trained: {alone[:1]}"
    return "read", _unsaid(case, reading) or _wrong(case, *used) or wrong


def _wrong(case: Case, training: list[str], held_out: list[str], evaluation: list[str]) -> str:
    """What was read that is not meant, or not read that is."""
    found = [*training, *held_out, *evaluation]
    if len(set(found)) != len(set(training)) + len(set(held_out)) + len(set(evaluation)):
        return "a text has two uses"
    if any(FORBIDDEN in text for text in found):
        return "cards or hidden files were read"
    if leaked := case.tests & set(training):
        return f"test text is trained on: {sorted(leaked)[:1]}"
    if case.fate == READ and {text.strip() for text in case.planted} != set(found):
        odd = [text for text in found if text not in case.planted] or sorted(set(case.planted) - set(found))
        return f"{len(set(found))} of {len(case.planted)} texts, such as {odd[:1]!r:.200}"
    return ""


def _unsaid(case: Case, reading: Reading) -> str:
    """What was read, or left, without a word."""
    if not reading.read or not all(line.isprintable() for line in reading.lines()):
        return f"not said in lines: {reading.lines()}"
    told = {*(entry.name for entry in reading.read), *reading.skipped}
    for name in case.files if case.data.is_dir() else ():
        parts = Path(name).parts
        if not any("/".join(parts[: n + 1]) in told for n in range(len(parts))):
            return f"{name} is neither read nor skipped: {reading.lines()}"
    about = reading.about()
    json.dumps(about).encode()
    return "" if about["files"] == len(reading.read) else "the record differs"


@pytest.mark.parametrize("number", FEW)
def test_data_is_read_and_told_or_refused(number: int, tmp_path: Path) -> None:
    case = made(number, tmp_path)
    became, wrong = judged(case)
    assert not wrong, (case.task, case.damage, became, wrong)


@pytest.mark.slow
def test_two_thousand_files() -> None:
    assert campaign(ALL)["wrong"] == []


def test_the_cases_are_of_all_kinds_and_the_same_each_time(tmp_path: Path) -> None:
    cases = [made(number, _new(tmp_path, f"a{number}")) for number in FEW]
    again = [made(number, _new(tmp_path, f"b{number}")) for number in FEW]
    assert [case.planted for case in cases] == [case.planted for case in again]
    assert {case.task for case in cases} == {TEXT, CLASSES, SCORES, IMAGES, QUESTIONS_OF_IMAGES, QUESTIONS}
    assert {case.fate for case in cases} >= {READ, REFUSED}


def _new(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def campaign(numbers: range) -> dict[str, Any]:
    """All cases of ``numbers``: how many became what, the slowest, and what is wrong."""
    became: Counter[str] = Counter()
    by_task: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            case = made(number, Path(folder))
            start = time.monotonic()
            outcome, what = judged(case)
            slowest = max(slowest, time.monotonic() - start)
        became[outcome] += 1
        by_task[case.task] += 1
        if what:
            wrong.append(f"{number} {case.task}, {case.damage}: {what}")
    figures = {name: became[name] for name in ("read", "refused", "traceback", "hung")}
    return {"cases": len(numbers), **figures, "tasks": dict(by_task), "slowest_s": round(slowest, 2), "wrong": wrong}


if __name__ == "__main__":  # python tests/faults/test_data_files.py 2000 benchmarks/results/faults.json
    found = campaign(range(int(sys.argv[1])))
    print(json.dumps(found, indent=1, ensure_ascii=False))
    if len(sys.argv) > 2:
        place = Path(sys.argv[2])
        known = json.loads(place.read_text()) if place.exists() else {}
        place.write_text(json.dumps(known | {"data": found}, indent=1, ensure_ascii=False) + "\n")
