"""The case of each number."""

from __future__ import annotations

import random
from pathlib import Path

from data_damages import single
from data_files import IMAGES, QUESTIONS, QUESTIONS_OF_IMAGES, TASKS, Case
from data_folders import folder_of, images


def made(number: int, folder: Path) -> Case:
    """The case of that number, written into the empty ``folder``; the same each time."""
    rng = random.Random(f"data {number}")
    case = Case(number, rng.choice(TASKS), folder, "")
    if case.task in (IMAGES, QUESTIONS_OF_IMAGES):
        images(case, rng, folder)
    elif case.task == QUESTIONS or rng.random() < 0.65:
        single(case, rng, folder)
    else:
        folder_of(case, rng, folder)
    return case
