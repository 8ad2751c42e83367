"""Pictures of one coloured shape, with questions and captions: data of the demonstration, made by a seed, needing no download.

In the manner of easy-VQA (Zhou 2019), drawn and worded anew: also where the shape is, and how large.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLOURS = {
    "red": (214, 48, 49), "green": (38, 166, 91), "blue": (41, 98, 214), "yellow": (240, 200, 40),
    "black": (30, 30, 34), "purple": (136, 68, 190),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": (0.11, 0.14), "large": (0.2, 0.25)}
"""Radius as a share of the picture's side, least and most."""
SIDES = ("left", "right")


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    shape: str
    colour: str
    size: str
    side: str

    @property
    def caption(self) -> str:
        """In one sentence."""
        return f"a {self.size} {self.colour} {self.shape} on the {self.side}"

    def questions(self, rng: random.Random) -> list[tuple[str, str]]:
        """Four questions that ask for something, and two of yes and no, one of each answer in the long run."""
        found = [
            ("what shape is it ?", self.shape),
            (f"what color is the {self.shape} ?", self.colour),
            (f"is the {self.shape} small or large ?", self.size),
            (f"on which side is the {self.colour} shape ?", self.side),
        ]
        for what, values in (("shape", SHAPES), ("colour", tuple(COLOURS))):
            own = getattr(self, what)
            named = own if rng.random() < 0.5 else rng.choice([value for value in values if value != own])
            asked = f"is there a {named} ?" if what == "shape" else f"is it {named} ?"
            found.append((asked, "yes" if named == own else "no"))
        return found


def scene(rng: random.Random) -> Scene:
    """One at random, all alike probable."""
    return Scene(rng.choice(SHAPES), rng.choice(tuple(COLOURS)), rng.choice(tuple(SIZES)), rng.choice(SIDES))


def drawn(shown: Scene, rng: random.Random, side: int = 48) -> Any:
    """``shown`` as an RGB picture ``side`` × ``side``; place, size, tint and background vary within what the words allow."""
    from PIL import Image, ImageDraw

    fine = 4 * side  # drawn large and made smaller: edges are soft
    light = rng.randint(226, 250)
    image = Image.new("RGB", (fine, fine), (light, light, light))
    radius = rng.uniform(*SIZES[shown.size])
    across = rng.uniform(radius + 0.02, 0.46) if shown.side == "left" else rng.uniform(0.54, 0.98 - radius)
    down = rng.uniform(radius + 0.02, 0.98 - radius)
    tint = tuple(max(0, min(255, value + rng.randint(-14, 14))) for value in COLOURS[shown.colour])
    x, y, r = across * fine, down * fine, radius * fine
    pen = ImageDraw.Draw(image)
    if shown.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tint)
    elif shown.shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=tint)
    else:
        pen.polygon(_corners(x, y, r, 3 if shown.shape == "triangle" else 10), fill=tint)
    return image.resize((side, side), Image.Resampling.LANCZOS)


def _corners(x: float, y: float, r: float, count: int) -> list[tuple[float, float]]:
    """Of a triangle, or of a star, whose every other corner is nearer; one points up."""
    inner = 0.45 if count > 3 else 1.0
    return [
        (x + reach * math.sin(2 * math.pi * k / count), y - reach * math.cos(2 * math.pi * k / count))
        for k in range(count)
        for reach in [r * (inner if k % 2 else 1.0)]
    ]


def write_shapes(folder: Path, training: int = 2000, test: int = 400, seed: int = 0, side: int = 48) -> Path:
    """``folder`` with the parts ``train`` and ``test``, as `fas.tasks.visual` reads them: ``images``, and a table of questions.

    ``captions``, a folder beside each part's, has one row a picture. The same seed gives the same pictures and words.
    """
    for part, count in (("train", training), ("test", test)):
        rng = random.Random(f"{seed} {part}")
        images = folder / part / "images"
        images.mkdir(parents=True, exist_ok=True)
        questions: list[dict[str, str]] = []
        captions: list[dict[str, str]] = []
        for number in range(count):
            shown, name = scene(rng), f"{number}.png"
            drawn(shown, rng, side).save(images / name)
            questions += [{"image": name, "question": q, "answer": a} for q, a in shown.questions(rng)]
            captions.append({"image": f"../../{part}/images/{name}", "caption": shown.caption})
        _write(folder / part / "questions.jsonl", questions)
        _write(folder / "captions" / part / "captions.jsonl", captions)
    return folder


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
