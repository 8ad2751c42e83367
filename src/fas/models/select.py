"""Which of a model's possible sites become sites: as the configuration says, or as a checkpoint lists them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from torch import nn

from fas.config import SpikingConfig
from fas.errors import ConfigError
from fas.models.find import Placement, Segment, find_placements, find_segments

Plan = list[tuple[Segment, list[Placement]]]
"""Segments with the sites to be placed in them, in the order in which they run."""


def planned(model: nn.Module, config: SpikingConfig) -> Plan:
    """The sites of ``config``: its coverage, of that ``targets`` (if any), without ``ignore``.

    Raises `UnsupportedModelError` where no family accounts for the model, and `ConfigError` for an entry that matches no
    site, is no regular expression, or if no site is left.
    """
    plan = _every(model, config)
    names = [place.name for _, places in plan for place in places]
    targets, ignored = _matching(config.targets, names, "targets"), _matching(config.ignore, names, "ignore")
    chosen = {name for name in names if (not config.targets or name in targets) and name not in ignored}
    chosen &= _in_parts(plan, config)
    if not chosen:
        raise ConfigError(
            f"targets {list(config.targets)} and ignore {list(config.ignore)} leave none of the {len(names)} sites of its parts"
        )
    return _only(plan, chosen.__contains__)


def listed(model: nn.Module, config: SpikingConfig, names: Iterable[str]) -> Plan:
    """The sites that a checkpoint lists; ``model`` may be the inner model of the one that was saved, or hold it."""
    names = list(names)

    def is_listed(name: str) -> bool:
        return any(n == name or n.endswith(f".{name}") or name.endswith(f".{n}") for n in names)

    return _only(_every(model, config), is_listed)


def _every(model: nn.Module, config: SpikingConfig) -> Plan:
    return [(segment, find_placements(segment, config)) for segment in find_segments(model)]


def _only(plan: Plan, keep: Callable[[str], bool]) -> Plan:
    return [(segment, [place for place in places if keep(place.name)]) for segment, places in plan]


def _in_parts(plan: Plan, config: SpikingConfig) -> set[str]:
    """The sites of the parts that spike."""
    there = {segment.family.part for segment, _ in plan}
    for part in config.parts:
        if part not in there:
            raise ConfigError(f"parts: the model has no {part}; it has {', '.join(sorted(there))}")
    wanted = set(config.parts) or there
    return {place.name for segment, places in plan if segment.family.part in wanted for place in places}


def _matching(entries: Iterable[str], names: list[str], setting: str) -> set[str]:
    found: set[str] = set()
    for entry in entries:
        matches = {name for name in names if _matches(entry, name, setting)}
        if not matches:
            raise ConfigError(f"{setting}: {entry!r} matches no site; sites are named like {names[0]}, see fas inspect")
        found |= matches
    return found


def _matches(entry: str, name: str, setting: str) -> bool:
    if not entry.startswith("re:"):
        return entry == name
    try:
        return re.fullmatch(entry.removeprefix("re:"), name) is not None
    except re.error as error:
        raise ConfigError(f"{setting}: {entry!r} is no regular expression ({error})") from None
