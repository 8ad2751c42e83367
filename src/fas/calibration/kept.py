"""Layers that Stage 2 has finished, kept in a folder, so that a killed calibration goes on where it was.

What the layers in front give out is computed anew from them, and comes out the same: everything in Stage 2 is deterministic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from fas.conversion.kept import Kept
from fas.neurons import NeuronParameters, Site


class KeptLayers(Kept):
    """The neuron parameters of finished layers."""

    def load(self, layer: str, sites: Sequence[Site]) -> dict[str, Any] | None:
        """Put the finished parameters of ``layer`` into its ``sites`` and return its report; None if it is not finished."""
        found = self.read(layer)
        if found is None:
            return None
        values, report = found
        for site in sites:
            entry = _parameters(site)
            entry.load_state_dict({name: values[f"{site.name}.{name}"] for name in entry.state_dict()})
        return report

    def store(self, layer: str, sites: Sequence[Site], report: Mapping[str, Any]) -> None:
        """Keep what ``sites`` were given and the ``report`` of ``layer``."""
        values = {
            f"{site.name}.{name}": value for site in sites for name, value in _parameters(site).state_dict().items()
        }
        self.write(layer, values, report)


def file_name(key: str) -> str:
    """``key`` of a coding and time as a part of a file's name, which has no room for long schedules."""
    return key if len(key) <= 100 else f"{key[:60]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _parameters(site: Site) -> NeuronParameters:
    found = site.parameters_for(site.clock.config)
    assert found is not None
    return found
