"""Pictures of coloured squares with questions, and an untrained LLaVA for them with real processor classes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 220)}
SCRIPT = Path(__file__).parents[1] / "scripts" / "train_vision.py"


def part(folder: Path, count: int, shift: int = 0) -> Path:
    """``count`` pictures of 16 × 16 in ``folder``/images, two questions each, in easy-VQA's layout."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        name = list(COLOURS)[(number + shift) % 3]
        Image.new("RGB", (16, 16), COLOURS[name]).save(folder / "images" / f"{number}.png")
        rows += [["what color is it?", name, number], ["is it red?", "yes" if name == "red" else "no", number]]
    (folder / "questions.json").write_text(json.dumps(rows))
    return folder


def data(folder: Path) -> Path:
    part(folder / "train", 60)
    part(folder / "test", 9, shift=1)
    return folder


def script() -> ModuleType:
    """`scripts/train_vision.py` as a module."""
    spec = importlib.util.spec_from_file_location("train_vision", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def llava(folder: Path, place: Path) -> Path:
    """A LLaVA for the questions of ``folder``, 32 wide, patches of 4; saved with its processor."""
    from fas.tasks.visual import load_visual

    made, rows = script(), load_visual("vqa", str(folder)).training
    processor = made.processor_of(rows, 16, 4)
    torch.manual_seed(0)
    made.untrained(processor, 16, 4, 32, 1).save_pretrained(place)
    processor.save_pretrained(place)
    return place
