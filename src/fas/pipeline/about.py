"""What a recipe says about itself: what it reproduces, the published figures, where it runs. Nothing changes a conversion."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Block(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Published(Block):
    """One published figure, with where it was read; ``figure`` None: not found in what could be read."""

    of: str
    """Whose it is."""
    metric: str
    figure: float | str | None
    timesteps: int | None = None
    ann: float | None = None
    """The same of the network that it was converted from."""
    source: str


class Machine(Block):
    """Where and how to run the recipe; ``options`` are changed there, ``processes`` is what torchrun is told."""

    name: str
    gib: float
    """Memory of the machine, or of each of its GPUs."""
    processes: int = 1
    options: dict[str, Any] = {}
    note: str = ""

    def command(self, recipe: str) -> str:
        """What to type."""
        start = "fas" if self.processes == 1 else f"torchrun --nproc-per-node {self.processes} -m fas.cli"
        flags = [_flag(name, value) for name, value in self.options.items()]
        return " ".join([start, "convert --recipe", recipe, "--out", recipe, *flags])


def _flag(name: str, value: Any) -> str:
    option = "--" + {"codings": "coding"}.get(name, name).replace("_", "-")
    if isinstance(value, bool):
        return option if value else option.replace("--", "--no-", 1)
    return f"{option} {','.join(map(str, value)) if isinstance(value, list) else value}"


class About(Block):
    """What a recipe is for; nothing of it changes a conversion."""

    title: str
    reproduces: str
    """Which row of which paper."""
    published: tuple[Published, ...]
    machines: tuple[Machine, ...]
    zero_shot: tuple[str, ...] = ()
    """Tasks of ``fas eval OUT --tasks``, to be measured on what was converted."""
    note: str = ""

    def commands(self, recipe: str) -> dict[str, str]:
        """What to type, by machine; and what to measure afterwards."""
        found = {}
        for machine in self.machines:
            where = f"{machine.name}, {machine.gib:g} GiB{' each' if machine.processes > 1 else ''}"
            found[where] = machine.command(recipe) + (f"  # {machine.note}" if machine.note else "")
        if self.zero_shot:
            found["afterwards"] = f"fas eval {recipe} --tasks {','.join(self.zero_shot)}"
        return found


class ExampleCounts(Block):
    """Rough sizes of the data, for the time of a dry run: texts, or tokens of running text."""

    training: int
    evaluation: int
