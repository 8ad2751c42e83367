"""What Stage 2 does for one coding and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fas.errors import ConfigError
from fas.given.kinds import require_kinds

DEEP = 12
"""Layers from which on errors of time are those of the whole network more than of each layer."""
SETTLED = 0.03
"""Nats within which a search layer by layer gained nothing on 30 layers (docs/log.md, 2026-12-01)."""
JUDGED = 2
"""Candidates are judged on this many times the tokens that they are searched on."""


@dataclass(frozen=True)
class CalibrationOptions:
    """The parts of Stage 2, in the order in which they run. Raises `ConfigError` for values that make no sense."""

    coarse: bool = True
    """One threshold factor and one initial potential per site."""
    settle: bool = False
    """sigma_delta, before all others: step schedules by depth, with the whole network running (`fas.calibration.settling`)."""
    settled_within: float = 0.0
    """Nats, after ``settle``: where schedules alone bring the network as close to its QCFS model, no layer is searched."""
    search_steps: bool = True
    """sigma_delta: each site's own step schedule and dead zones, by search; else the configuration's."""
    per_channel: bool = True
    """Then each channel's own best pair of the same candidates (closed form, no gradient)."""
    corrections: bool = True
    """Then v₀ and θ of each channel from the mean and the size of its error (closed form)."""
    fit_steps: int = 32
    """Then gradient steps per site on its error as the layers that read it see it (0: none); no layer runs for them."""
    absorb_bias: bool = False
    """Then the mean error that is left goes into the bias of the linear layers behind (beyond the paper)."""
    align_steps: int = 0
    """Then gradient steps per layer on the activation-align loss of its readout (0: none)."""
    global_steps: int = 0
    """Gradient steps of all sites together on the logits KL against the QCFS model (0: none)."""
    temperature: float = 1.0
    search_rows: int = 1024
    """Tokens that sites are searched and fitted on, evenly from the batches that candidates are judged on."""
    spike_price: float = 0.0
    """Relative error of a layer that may be paid to save one spike a neuron (0: spikes are free)."""

    def __post_init__(self) -> None:
        require_kinds(self)
        if self.spike_price < 0:
            raise ConfigError(f"spike_price={self.spike_price} is not valid: it must be at least 0")
        if self.per_channel and not self.coarse:
            raise ConfigError("per_channel refines the coarse search; set per_channel=False too, or coarse=True")
        for name in ("fit_steps", "align_steps", "global_steps", "settled_within"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} is not valid: it must be at least 0")
        if self.search_rows < 1:
            raise ConfigError(f"search_rows={self.search_rows} is not valid: candidates need at least one token")

    @classmethod
    def for_depth(cls, layers: int, fit_steps: int | None = None, **given: Any) -> CalibrationOptions:
        """The options for a network of so many ``layers``: in a `DEEP` one schedules are found on the whole network, and each
        layer takes a few forward passes instead of gradient steps, unless ``fit_steps`` are given; layers stay as they are
        where schedules bring the network within `SETTLED` nats, unless a search of them is asked for or spikes have a price."""
        deep = layers > DEEP
        asked = fit_steps is not None or given.get("align_steps") or given.get("spike_price")
        if fit_steps is None:
            fit_steps = 0 if deep else cls.fit_steps
        given.setdefault("settled_within", SETTLED if deep and not asked else 0.0)
        return cls(settle=deep, fit_steps=fit_steps, search_rows=256 if deep else cls.search_rows, **given)

    @property
    def judged_tokens(self) -> int:
        """How many tokens the batches that candidates are judged on hold, if there are as many."""
        return JUDGED * self.search_rows

    @property
    def walked_tokens(self) -> int | None:
        """How many tokens go through the layers; None: all, where each layer descends on all batches."""
        return None if self.align_steps else self.judged_tokens
