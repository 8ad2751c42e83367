"""The account of one forward: what was multiplied, what was accumulated because of spikes, what stayed analog.

``ann`` is always the work of one evaluation of the original network, ``snn`` what the spiking one did over all timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fas.accounting.emission import Emission
from fas.accounting.work import Work


@dataclass
class Events:
    """Spikes that one operand of a product brought."""

    site: str
    by_timestep: list[float]
    fan_out: int
    """Accumulates that one of them causes."""
    shifted: float = 0
    """Spikes among them that are worth 2, 4 …"""
    constant: bool = False
    """Whether the site's start or absorbed errors add a constant to what is made of them: a bias, where there was none."""


@dataclass
class Product:
    """One matrix product ``groups`` × [m, k] · [k, n], counted for one evaluation; it ran ``times``.

    With ``events`` its multiply-accumulates became accumulates; without, it is analog.
    """

    module: str
    kind: str
    groups: int
    m: int
    k: int
    n: int
    times: int
    weighted: bool = True
    """Whether the right operand is a weight."""
    bias: bool = False
    bias_times: int = 1
    events: list[Events] = field(default_factory=list)
    resident: bool = False
    """Whether weights stay where they are for all timesteps (layerwise)."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one evaluation."""
        return self.groups * self.m * self.k * self.n

    @property
    def accumulates(self) -> int:
        """Accumulates that spikes caused, over all timesteps; 0 if the product is analog."""
        return round(sum(sum(entry.by_timestep) * entry.fan_out for entry in self.events))

    @property
    def shifts(self) -> int:
        """Accumulates among them whose spike was worth 2, 4 …"""
        return round(sum(entry.shifted * entry.fan_out for entry in self.events))

    def dense(self) -> Work:
        """One evaluation with multi-bit operands."""
        outputs, inputs = self.groups * self.m * self.n, self.groups * self.m * self.k
        right = self.groups * self.k * self.n
        return Work(
            macs=self.macs,
            adds=outputs if self.bias else 0,
            weight_words=right if self.weighted else 0,
            activation_words=inputs + outputs + (0 if self.weighted else right),
        )

    def spiking(self, share: float = 1.0) -> Work:
        """All timesteps, event by event, with ``share`` of the spikes (for the break-even rate).

        Weights are fetched a row per spike, or all of them once a timestep where that is less; an output's running sum is
        read and written at every timestep, and so are (attention) the running values that spikes are multiplied with.
        """
        steps = len(self.events[0].by_timestep)
        outputs, right = self.groups * self.m * self.n, self.groups * self.k * self.n
        left = self.groups * self.m * self.k
        acs = share * self.accumulates
        work = Work(
            acs=acs,
            shifts=share * self.shifts,
            adds=outputs * self.bias_times if self.bias or any(entry.constant for entry in self.events) else 0,
            events=share * sum(sum(entry.by_timestep) for entry in self.events),
            state_words=2 * outputs * steps,
        )
        if not self.weighted:
            work.state_words += min(acs, (left + right) * steps)
            return work
        trains = [entry.by_timestep for entry in self.events]
        each = [share * sum(counts) * self.n for counts in zip(*trains, strict=True)]
        work.weight_words = min(sum(each), right) if self.resident else sum(min(words, right) for words in each)
        return work


@dataclass
class Tally:
    """Other operations of one module and kind: element-wise ones, reductions, norms, look-ups."""

    module: str
    kind: str
    times: int = 1
    elements: float = 0
    """Values that one evaluation gave (reductions: read)."""
    ann: Work = field(default_factory=Work)
    snn: Work = field(default_factory=Work)
    sites: list[str] = field(default_factory=list)
    """Whose spikes were accumulated here, in place of an analog operation."""


@dataclass
class SiteTally:
    """What the neurons of one site did."""

    name: str
    kind: str
    replaces: bool = False
    """Whether it stands in for an activation, which the ANN computes."""
    elements: float = 0
    """Values that it encodes (one evaluation)."""
    spikes: float = 0
    updates: float = 0
    readouts: int = 0
    """Group of neurons: accumulates that one spike causes in the readout."""
    function: bool = False
    """Whether it is a group for a function that ran nowhere else."""

    def work(self, share: float = 1.0) -> Work:
        """Neuron updates with their potentials; a group's spikes and readout."""
        work = Work(updates=self.updates, state_words=2 * self.updates)
        if self.readouts:
            work += Work(acs=share * self.spikes * self.readouts, events=share * self.spikes)
        return work

    def replaced(self) -> Work:
        """What the ANN computes here."""
        return Work(
            functions=self.elements if self.replaces or self.function else 0,
            muls=self.elements if self.replaces else 0,
        )


@dataclass
class Account:
    """Everything that one forward executed."""

    products: list[Product] = field(default_factory=list)
    tallies: dict[tuple[str, str, tuple[str, ...]], Tally] = field(default_factory=dict)
    sites: dict[str, SiteTally] = field(default_factory=dict)
    overhead: dict[str, float] = field(default_factory=dict)
    """Values that only the simulation moves or computes, by what does it."""
    unknown: dict[str, int] = field(default_factory=dict)
    """Operations that are in no table, and how often they ran."""
    notes: list[str] = field(default_factory=list)

    def tally(self, module: str, kind: str, sites: Sequence[str] = ()) -> Tally:
        """The tally of ``module`` and ``kind``; a new one the first time."""
        key = module, kind, tuple(sites)
        if key not in self.tallies:
            self.tallies[key] = Tally(module, kind, sites=list(sites))
        return self.tallies[key]

    def emitted(self, emission: Emission, kind: str) -> SiteTally:
        """Add ``emission`` to its site."""
        tally = self.sites.setdefault(emission.site, SiteTally(emission.site, kind))
        tally.elements += emission.elements
        tally.spikes += emission.spikes
        tally.updates += emission.updates
        return tally

    @property
    def spiking(self) -> list[Product]:
        """Products whose operands were spikes."""
        return [product for product in self.products if product.events]

    @property
    def analog(self) -> list[Product]:
        """Products that stayed multiplications."""
        return [product for product in self.products if not product.events]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one evaluation of the ANN."""
        return sum(product.macs for product in self.products)

    @property
    def macs_replaced(self) -> int:
        """Those among them that became accumulates."""
        return sum(product.macs for product in self.spiking)

    @property
    def accumulates(self) -> int:
        """Accumulates that spikes caused in products, over all timesteps."""
        return sum(product.accumulates for product in self.spiking)
