"""Where a tensor comes from: from a site (its spikes), and whether it has a row for every timestep. Kept by storage.

Views share a storage, so only copies have to hand on what is known. An operation that writes into a storage ends what was
known of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fas.accounting.emission import Emission

PRUNE_EVERY = 512


@dataclass
class Origin:
    """What is known of a storage."""

    timed: bool = False
    """Whether its rows are timesteps."""
    emission: Emission | None = None
    constant: bool = False
    """Whether it is a copy of a parameter or buffer."""


NOTHING = Origin()


class Provenance:
    """Origins of living storages. A weak reference keeps the number of a dead one from being given out again."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[StorageWeakRef, Origin]] = {}
        self.since = 0

    def of(self, tensor: Tensor) -> Origin:
        """What is known of ``tensor``; `NOTHING` if nothing is."""
        found = self.known.get(tensor.untyped_storage()._cdata)
        return NOTHING if found is None else found[1]

    def put(self, tensor: Tensor, origin: Origin) -> None:
        """Remember ``origin``; replaces what was known."""
        storage = tensor.untyped_storage()
        if origin != NOTHING:
            self.known[storage._cdata] = StorageWeakRef(storage), origin
        else:
            self.known.pop(storage._cdata, None)
        self.since += 1
        if self.since >= PRUNE_EVERY:
            self.since = 0
            self.known = {key: entry for key, entry in self.known.items() if not entry[0].expired()}
