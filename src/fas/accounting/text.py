"""A ledger for people: sites and modules of all layers together, energy as a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fas.accounting.energy import ROWS
from fas.accounting.parts import PartEntry
from fas.sections import Section

if TYPE_CHECKING:
    from fas.accounting.ledger import Ledger, Statement

PICO = 1e-6
"""Energies are shown in µJ a token."""


def sections_of(found: Ledger) -> list[Section]:
    """Headline, sites, what stays analog, energy and break-even of a whole batch; energy of one decoding step."""
    parts = [Section(f"{found.model}: {found.headline}")]
    forward = found.forward
    if forward.sites:
        parts += [_sites(forward), _spiking(forward)]
    if found.parts:
        parts.append(_parts(found.parts))
    parts += [_analog(forward), _energy(forward, f"Energy of a forward pass of {forward.tokens:,} tokens")]
    if found.decode is not None:
        parts.append(_energy(found.decode, f"Energy of one decoding step of {found.decode.tokens:,} sequences"))
    if found.neurobench is not None:
        parts.append(_neurobench(found.neurobench))
    return parts + [Section(f"Note: {note}") for note in forward.notes]


def pattern(name: str) -> str:
    """A module's or site's name with its layer left open.

    >>> pattern("transformer.h.11.mlp.c_fc")
    'transformer.h.*.mlp.c_fc'
    """
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _sites(statement: Statement) -> Section:
    table = [("site", "spikes/neuron", "by timestep", "firing rate", "accumulates", "silent channels")]
    for name, sites in _grouped((pattern(site.name), site) for site in statement.sites).items():
        neurons = sum(site.neurons for site in sites)
        steps = len(sites[0].by_timestep)
        each = [sum(site.by_timestep[t] * site.neurons for site in sites) / neurons for t in range(steps)]
        silent, channels = sum(site.silent_channels for site in sites), sum(site.channels for site in sites)
        table.append(
            (
                name,
                f"{sum(each):.2f}",
                " ".join(f"{value:.2f}" for value in each),
                f"{sum(each) / steps:.1%}",
                f"{sum(site.accumulates for site in sites):,}",
                f"{silent} of {channels}",
            )
        )
    return Section("Spikes:", table)


def _spiking(statement: Statement) -> Section:
    steps = max(len(site.by_timestep) for site in statement.sites)
    became = (
        f"{statement.macs_replaced:,} of {statement.macs:,} multiply-accumulates became {statement.accumulates:,} "
        f"accumulates ({statement.shifts:,} of them with a shift);"
    )
    ran = (
        f"{statement.macs_analog_executed:,} multiply-accumulates were run all the same, over {steps} timesteps; "
        f"{statement.updates:,} neuron updates."
    )
    return Section(behind=[became, ran])


def _parts(entries: Sequence[PartEntry]) -> Section:
    table = [("part", "multiply-accumulates", "became accumulates", "run all the same", "accumulates", "spikes/neuron")]
    for entry in entries:
        replaced = entry.macs_replaced / entry.macs if entry.macs else 0.0
        counts = (f"{entry.macs:,}", f"{replaced:.1%}", f"{entry.macs_analog_executed:,}", f"{entry.accumulates:,}")
        table.append((entry.part, *counts, f"{entry.spikes_per_neuron:.2f}" if entry.neurons else ""))
    return Section("By part:", table)


def _analog(statement: Statement) -> Section:
    table = [("module", "kind", "multiply-accumulates", "values", "times")]
    products = _grouped(((pattern(p.module), p.kind, p.times), p) for p in statement.products if not p.sites)
    for (module, kind, times), entries in products.items():
        table.append((module, kind, f"{sum(entry.macs for entry in entries):,}", "", f"× {times}"))
    others = _grouped(((pattern(o.module), o.kind, o.times), o) for o in statement.operations if not o.sites)
    for (module, kind, times), values in others.items():
        elements = sum(value.elements for value in values)
        if elements:
            table.append((module or "(model)", kind, "", f"{round(elements):,}", f"× {times}"))
    title = "What stays analog (one evaluation, and how often it ran):" if statement.sites else "What ran:"
    return Section(title, table)


def _energy(statement: Statement, title: str) -> Section:
    energy, tokens = statement.energy, max(1, statement.tokens)
    table: list[tuple[str, ...]] = [("µJ a token", *energy.columns)]
    for row, values in energy.picojoules.items():
        cells = []
        for column in energy.columns:
            ratio = energy.ratios.get(row, {}).get(column)
            cells.append(f"{values[column] * PICO / tokens:.3g}" + (f" (×{ratio:.3g})" if ratio is not None else ""))
        table.append((ROWS[row], *cells))
    lines: list[str] = []
    if energy.break_even:
        references = ", ".join(f"{entry.column}: {ROWS[entry.against]}" for entry in energy.break_even)
        lines += [
            "(×) strict: against the row it breaks even with (" + references + ");",
            "as papers count: against the multiply-accumulates that became accumulates, at the same precision.",
        ]
    for entry in energy.break_even:
        where = "below it: the SNN costs less" if entry.wins else "above it: the SNN costs more"
        at = (
            f"breaks even with the {ROWS[entry.against]} at {entry.rate:.2%} (spikes per neuron and timestep), this model "
            f"fires at {entry.measured:.2%}, {where}"
            if entry.rate is not None
            else f"at no firing rate below the {ROWS[entry.against]}: what does not depend on spikes costs more already"
        )
        lines.append(f"  {entry.column}: {at}")
    return Section(f"{title}:", table, lines)


def _neurobench(metrics: dict[str, float]) -> Section:
    values = [(name.replace("_", " "), f"{value:,.4g}") for name, value in metrics.items()]
    return Section("NeuroBench metrics:", [("metric", "value"), *values])


def _grouped(pairs: Iterable[tuple]) -> dict:
    found: dict = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found
