"""Spike trains of chosen sites, for a picture: one forward, recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import ConfigError
from fas.runtime.control import clock_of, sites_of

TOKENS, CHANNELS = 24, 48


def chosen_sites(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Names of sites: exactly as given, or by ``re:`` and a pattern; without any, the first site of each kind.

    Raises `ConfigError` for a name that no site has.
    """
    sites, found = list(sites_of(model)), []
    for name in names:
        pattern = re.compile(name[3:]) if name.startswith("re:") else None
        matching = [site for site in sites if (pattern.fullmatch(site) if pattern else site == name)]
        if not matching:
            raise ConfigError(f"raster: {name!r} matches no site; sites are named like {sites[0]}, see fas inspect")
        found += matching
    if not found:
        kinds: dict[str, str] = {}
        for site in sites:
            kinds.setdefault(site.rsplit(".", 1)[-1], site)
        found = list(kinds.values())
    return list(dict.fromkeys(found))


def record(model: nn.Module, batch: Mapping[str, Any], sites: Iterable[str]) -> dict[str, Tensor]:
    """Spikes ``[T, tokens, channels]`` (int8) of the first row of ``batch``: as many tokens and channels as fit a picture."""
    return _recorded(model, batch, sites, lambda first: first[:, :TOKENS, :CHANNELS].to(torch.int8).cpu())


def by_token(model: nn.Module, batch: Mapping[str, Any], sites: Iterable[str]) -> dict[str, Tensor]:
    """Spikes of all channels of a token together, ``[T, tokens]``, in the first row of ``batch``."""
    return _recorded(model, batch, sites, lambda first: first.abs().sum(-1, dtype=torch.int64).cpu())


@torch.no_grad()
def _recorded(
    model: nn.Module, batch: Mapping[str, Any], sites: Iterable[str], kept: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """What ``kept`` makes of the first spikes ``[T, tokens, channels]`` of each site in one forward."""
    clock, wanted, found = clock_of(model), set(sites), {}

    def probe(name: str, spikes: Tensor) -> None:
        if name in wanted and name not in found:
            found[name] = kept(spikes[:, 0].flatten(1, -2) if spikes.ndim > 3 else spikes[:, :1])

    with clock.changing("a recording of spikes"):
        before, clock.probe = clock.probe, probe
        try:
            model(**batch)
        finally:
            clock.probe = before
    return found
