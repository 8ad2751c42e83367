"""What an account costs: rows (ANN, quantized network, SNN) × columns (energy models), and the break-even firing rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, log2

from fas.accounting.account import Account
from fas.accounting.prices import Column, EnergyModels
from fas.accounting.work import Work

ROWS = {
    "ann_fp32": "ANN, fp32",
    "ann_fp16": "ANN, fp16",
    "ann_int8": "ANN, int8",
    "quantized": "quantized ANN of the same grid",
    "snn_paper": "SNN, as papers count (spiking products alone)",
    "snn_strict": "SNN, strict (the whole network)",
}


@dataclass
class BreakEven:
    """Firing rate (spikes per neuron and timestep) at which the strict SNN costs what ``against`` costs."""

    column: str
    against: str
    rate: float | None
    """None: at no rate, since what does not depend on spikes costs more already."""
    measured: float
    """The rate of this model."""

    @property
    def wins(self) -> bool:
        """Whether the SNN costs less."""
        return self.rate is not None and self.measured < self.rate


@dataclass
class EnergyTable:
    """pJ by row and column, each with its ratio to what it is fairly compared with."""

    columns: list[str]
    picojoules: dict[str, dict[str, float]]
    """By row, by column."""
    ratios: dict[str, dict[str, float | None]]
    """SNN rows only: strict to the row of ``break_even``; paper's convention to the ANN's same products, None without any."""
    break_even: list[BreakEven] = field(default_factory=list)


def bits_of(levels: int, signed: bool) -> int:
    """Bits of an operand of the quantized network: ⌈log₂ of the number of levels⌉.

    >>> bits_of(8, True), bits_of(15, True), bits_of(15, False)
    (5, 5, 4)
    """
    return ceil(log2((2 if signed else 1) * levels + 1))


def ann_work(account: Account) -> Work:
    """The original network, once."""
    total = Work()
    for product in account.products:
        total += product.dense()
    for tally in account.tallies.values():
        total += tally.ann
    for site in account.sites.values():
        total += site.replaced()
    return total


def snn_work(account: Account, share: float = 1.0) -> Work:
    """The spiking network over all timesteps, with ``share`` of its spikes."""
    total = Work()
    for product in account.products:
        total += product.spiking(share) if product.events else product.dense().times(product.times)
    for tally in account.tallies.values():
        total += tally.snn.times(share) if tally.sites else tally.snn
    for site in account.sites.values():
        total += site.work(share)
    return total


def quantized_work(account: Account) -> tuple[Work, Work]:
    """The QCFS model as an integer network, once: products with quantized operands, and the rest (with the rounding of each
    operand: one multiplication, two additions)."""
    covered, rest = Work(), Work()
    for product in account.products:
        target = covered if product.events else rest
        target += product.dense()
    for tally in account.tallies.values():
        rest += tally.ann if tally.kind != "rotation" else tally.snn.times(1 / tally.times)
    for site in account.sites.values():
        rest += site.replaced() if site.function else Work(muls=site.elements, adds=2 * site.elements)
    return covered, rest


def energy_table(account: Account, models: EnergyModels, bits: int, rate: float) -> EnergyTable:
    """Price ``account``; ``bits`` of the grid, ``rate`` spikes per neuron and timestep. Without sites: ANN rows only."""
    table = EnergyTable([column.name for column in models.columns], {}, {})
    ann, (covered, rest) = ann_work(account), quantized_work(account)
    spiking = Work()
    for product in account.spiking:
        spiking += Work(acs=product.accumulates)
    replaced = Work(macs=account.macs_replaced)

    def put(row: str, column: Column, picojoules: float) -> None:
        table.picojoules.setdefault(row, {})[column.name] = picojoules

    for column in models.columns:
        for row, precision in column.ann.items():
            put(row, column, models.energy(ann, column, precision))
        if not account.sites:
            continue
        put("quantized", column, models.energy(covered, column, column.quantized, bits)
            + models.energy(rest, column, column.quantized))  # fmt: skip
        put("snn_paper", column, models.energy(spiking, column, column.snn))
        put("snn_strict", column, models.energy(snn_work(account), column, column.snn))
        reference = table.picojoules[column.break_even][column.name]
        same = models.energy(replaced, column, column.snn)
        table.ratios.setdefault("snn_strict", {})[column.name] = _ratio(
            table.picojoules["snn_strict"][column.name], reference
        )
        table.ratios.setdefault("snn_paper", {})[column.name] = _ratio(table.picojoules["snn_paper"][column.name], same)
        at = _crossing(lambda share, c=column: models.energy(snn_work(account, share), c, c.snn), reference)
        table.break_even.append(BreakEven(column.name, column.break_even, None if at is None else at * rate, rate))
    return table


def _ratio(value: float, reference: float) -> float | None:
    return value / reference if reference else None


def _crossing(cost: Callable[[float], float], reference: float) -> float | None:
    """The share of spikes at which ``cost`` reaches ``reference`` (it never falls with spikes); None if 0 costs more."""
    if cost(0.0) > reference:
        return None
    low, high = 0.0, 1.0
    while cost(high) < reference and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < reference else (low, middle)
    return high
