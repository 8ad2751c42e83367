"""The order in which sites run: measured once, because no declaration says where a norm or an activation comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fas.neurons import Site


@torch.no_grad()
def measure_order(model: nn.Module, sites: Sequence[Site], batch: Mapping[str, Any]) -> None:
    """Run ``batch`` through the QCFS model and number the sites as they run; those it does not reach come behind."""
    clock, training = sites[0].clock, model.training
    clock.met = {}
    model.eval()
    try:
        model(**{key: value for key, value in batch.items() if key != "labels"})
        number(sites, clock.met)
    finally:
        clock.met = None
        model.train(training)


def number(sites: Sequence[Site], names: Iterable[str]) -> None:
    """Number ``sites`` as ``names`` lists them (which may be those of an inner or outer model); others come behind."""
    places = {name: place for place, name in enumerate(names)}

    def place_of(site: Site) -> int:
        known = (
            place
            for name, place in places.items()
            if name == site.name or name.endswith(f".{site.name}") or site.name.endswith(f".{name}")
        )
        return next(known, len(places))

    for order, site in enumerate(sorted(sites, key=place_of)):
        site.order = order
