"""A ledger by parts of the model: vision tower, projector, text model, and what lies between and behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from fas.accounting.account import Account
from fas.errors import UnsupportedModelError
from fas.models import find_segments

OTHER = "other"


class _Site(Protocol):
    name: str
    neurons: int
    spikes_per_neuron: float


@dataclass
class PartEntry:
    """What the products and sites of one part add up to."""

    part: str
    """``vision``, ``projector``, ``text``, or ``other``: heads, and projections that belong to no segment."""
    macs: int
    """Multiply-accumulates of one evaluation."""
    macs_replaced: int
    """Of these, what became accumulates."""
    macs_analog_executed: int
    """What was run all the same, over all timesteps."""
    accumulates: int
    neurons: int
    spikes_per_neuron: float


def parts_of(model: nn.Module) -> dict[str, str]:
    """The part of each segment of ``model``, by its name; none for a model that no family knows."""
    try:
        return {segment.name: segment.family.part for segment in find_segments(model)}
    except UnsupportedModelError:
        return {}


def by_part(places: Mapping[str, str], account: Account, sites: Iterable[_Site]) -> list[PartEntry]:
    """Products of ``account`` and ``sites`` by part, in the order of ``places``; nothing where there is one part only."""
    if len(set(places.values())) < 2:
        return []
    found = {part: PartEntry(part, 0, 0, 0, 0, 0, 0.0) for part in (*dict.fromkeys(places.values()), OTHER)}
    for product in account.products:
        entry = found[_part(places, product.module)]
        entry.macs += product.macs
        entry.macs_replaced += product.macs if product.events else 0
        entry.macs_analog_executed += 0 if product.events else product.macs * product.times
        entry.accumulates += product.accumulates
    for tally in account.tallies.values():  # products inside other operations, such as fused attention
        entry = found[_part(places, tally.module)]
        entry.macs += round(tally.ann.macs)
        entry.macs_analog_executed += round(tally.snn.macs)
    for site in sites:
        entry = found[_part(places, site.name)]
        spikes = entry.spikes_per_neuron * entry.neurons + site.spikes_per_neuron * site.neurons
        entry.neurons += site.neurons
        entry.spikes_per_neuron = spikes / entry.neurons if entry.neurons else 0.0
    return [entry for entry in found.values() if entry.macs or entry.neurons]


def _part(places: Mapping[str, str], name: str) -> str:
    return next((part for place, part in places.items() if name == place or name.startswith(f"{place}.")), OTHER)
