"""The clock that all sites and segments of one model share: the time it is simulated in, and whether that runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fas.config import SpikingConfig

Stage = Literal["qcfs", "snn"]
Probe = Callable[[str, Tensor], None]


class Fired(NamedTuple):
    """What a method's own neurons answer."""

    value: Tensor
    """What goes on, of the shape of what came."""
    spikes: Tensor
    """``[T, B, …, C]``, integers; n at once count as n."""
    worth: Tensor | None = None
    """What a spike is worth, broadcast to ``spikes``: ``value`` is their sum over T (in time: each row its own spikes') and,
    if a layer answers at once, a constant of each token. The ledger checks it; None: it takes ``value`` for analog."""


@dataclass(eq=False)
class Clock:
    """Shared, plain, picklable state of a prepared or converted model."""

    config: SpikingConfig
    stage: Stage = "qcfs"
    """``qcfs``: sites are QCFS units, no time; ``snn``: sites are neurons."""
    depth: int = 0
    """How many folded segments are running now; a neuron outside of one is an error."""
    still: bool = False
    """Whether no neuron of the running segment has been reached yet: its rows are the same at all T."""
    probe: Probe | None = None
    """Receives (site name, spikes ``[T, B, …, C]``) of every encoding while somebody records."""
    meter: Callable[[Any, Tensor, Tensor | None], None] | None = None
    """While QCFS units train under a spike budget: receives (site, values ``[B, …, C]``, which of them count)."""
    met: dict[str, None] | None = None
    """While somebody wants to know: the names of the sites that ran, in their order."""
    neuron: Callable[[Any, Tensor], Fired] | None = None
    """A method's own neuron in the place of the coding's (`fas.methods`), of (site, values ``[T, B, …, C]``, or ``[B, …, C]``
    where time is not folded). It is not saved."""
    worth: Tensor | None = None
    """For the probe: what the own neuron says its spikes are worth."""
    frozen: dict[Any, Any] | None = None
    """While no neuron changes (`fas.runtime.products`): what sites have worked out from their parameters."""
    early: Any = None
    """While sequences stop by themselves: the `fas.runtime.adaptive.Adaptive` that decides when."""
    visible: Tensor | None = None
    """For the probe: which neurons of the encoding ``[B, …, C]`` (broadcast) count; None: all. Masked ones never fire,
    and what a cache keeps has fired before."""

    @property
    def folds(self) -> bool:
        """Whether segments carry T·B rows."""
        return self.stage == "snn" and self.config.folds_time
