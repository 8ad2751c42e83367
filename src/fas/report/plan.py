"""What ``fas convert --dry-run`` found out: the stages of a conversion with their memory and time, and what it will write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fas.report.inspection import Inspection


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a conversion."""

    name: str
    does: str
    """In a few words, with its steps or batches."""
    tokens: int
    """That go through the network, all passes together (each once, however many timesteps)."""
    memory: dict[str, int]
    """Bytes that are there at once, by part; see `fas.pipeline.estimate`."""
    seconds: float

    @property
    def peak(self) -> int:
        """All parts, in bytes."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Speed:
    """What times are estimated with: operations of matrix products, and bytes written by everything else, a second."""

    flops: float
    bytes: float
    source: str
    """Measured, or assumed for which device."""


@dataclass(frozen=True)
class Plan:
    """A conversion that was not done."""

    model: str
    configuration: str
    """Where the model's configuration came from."""
    recipe: str | None
    about: dict[str, Any] | None
    inspection: Inspection
    stages: list[PlannedStage]
    speed: Speed
    memory_here: int | None
    """Bytes of memory that this machine (or its GPU) has; None where the plan is for a device that is not here."""
    files: dict[str, int]
    """Bytes of what will lie in the folder, and (``while it runs``) beside it."""
    notes: list[str] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    """Of a recipe: what to type, by machine; and afterwards."""

    @property
    def peak(self) -> int:
        """Bytes of the largest stage."""
        return max(stage.peak for stage in self.stages)

    @property
    def fits(self) -> bool | None:
        """Whether the peak fits into the memory here; None: for another machine."""
        return None if self.memory_here is None else self.peak <= self.memory_here

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"peak_bytes": self.peak, "fits_here": self.fits, "seconds": self.seconds}
