"""Work: how many primitive operations and how much traffic something took. What the energy models price."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class Work:
    """Counts; all are 0 unless said. Traffic is in words of what it names (the energy model says how many bits those have)."""

    macs: float = 0
    """Multiply-accumulates."""
    acs: float = 0
    """Accumulates that a spike caused."""
    shifts: float = 0
    """Accumulates among them whose spike was worth 2, 4 …: each a shift more."""
    adds: float = 0
    muls: float = 0
    functions: float = 0
    """Exponentials, roots, divisions."""
    updates: float = 0
    """Neuron updates: integrate, compare, and what they reset."""
    weight_words: float = 0
    activation_words: float = 0
    """Read or written, each once."""
    state_words: float = 0
    """Potentials and running sums, read and written at every timestep."""
    events: float = 0
    """Spikes handed on, each an address."""

    def __iadd__(self, other: Work) -> Work:
        mine, theirs = vars(self), vars(other)
        for name, count in theirs.items():
            if count:
                mine[name] += count
        return self

    def __add__(self, other: Work) -> Work:
        total = Work()
        total += self
        total += other
        return total

    def times(self, factor: float) -> Work:
        """All counts times ``factor``."""
        return Work(**{entry.name: getattr(self, entry.name) * factor for entry in fields(Work)})
