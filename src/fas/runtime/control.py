"""What a user does to a model's time: `set_timesteps`, views as QCFS model, recording of spikes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fas.errors import FasError
from fas.neurons import Clock, Site

logger = logging.getLogger(__name__)


def sites_of(model: nn.Module) -> dict[str, Site]:
    """All sites of a model by name, in the order in which they run."""
    found = [module for module in model.modules() if isinstance(module, Site)]
    return {site.name: site for site in sorted(found, key=lambda site: site.order)}


def clock_of(model: nn.Module) -> Clock:
    """The clock of a prepared or converted model; raises `FasError` for any other."""
    for module in model.modules():
        if isinstance(module, Site):
            return module.clock
    raise FasError(f"{type(model).__name__} has no spiking sites; convert it first (fas.prepare, fas.convert)")


def calibrated_keys(sites: Iterable[Site]) -> list[str]:
    """The codings and times (`SpikingConfig.neuron_key`) for which Stage 2 has fitted neurons."""
    return sorted(next((site.neurons for site in sites if site.calibrates), ()))


class SetTimesteps:
    """``model.set_timesteps(T, coding=…, steps=…, neurons_per_channel=…, rows=…, schedule=…, cache=…)``: choose time.

    Waits until other threads' calls of the model have ended; raises `FasError` if they do not (`fas.turns`), or inside a
    call. Neuron parameters calibrated for that coding and time are used where the model has them; else the uncalibrated ones,
    and a warning says so where other times were calibrated. Raises `ConfigError` for contradictions.
    """

    def __init__(self, sites: list[Site], model: nn.Module, changed: Callable[[nn.Module], None]) -> None:
        self.sites, self.model, self.changed = sites, model, changed

    def __call__(self, timesteps: int | None = None, **changes: Any) -> None:
        clock = self.sites[0].clock
        if clock.is_called:
            raise FasError(
                "set_timesteps was asked for inside a call of the model, which would go on in another time; ask for it before "
                "the call, or after it"
            )
        with clock.changing("set_timesteps"):
            self._set(clock, timesteps, changes)

    def _set(self, clock: Clock, timesteps: int | None, changes: dict[str, Any]) -> None:
        if timesteps is not None:
            changes["timesteps"] = timesteps
        if changes.get("prefix") == "auto":  # it was found when the model was prepared
            del changes["prefix"]
        known = calibrated_keys(self.sites)
        config = clock.config.replaced(**changes).closest(known, changes)
        fixed = ("coverage", "levels", "rotation", "center", "scales", "activation", "targets", "ignore", "prefix")
        if any(getattr(config, name) != getattr(clock.config, name) for name in fixed):
            raise FasError(f"{', '.join(fixed)} belong to Stage 1; convert anew to change them")
        before, clock.config = clock.config, config
        try:
            self.changed(self.model)
        except BaseException:
            clock.config = before
            raise
        config.note_if_too_short()
        if config.folds_time and known and config.neuron_key not in known:
            logger.warning(
                "no calibrated neurons for %s; using uncalibrated ones (calibrated: %s)",
                config.neuron_key,
                ", ".join(known),
            )


def refuse_frozen(clock: Clock, what: str) -> None:
    """Raise `FasError` where ``what`` would change neurons that `fas.accelerated` takes as they are."""
    if clock.frozen is not None:
        raise FasError(f"{what} changes neurons, which fas.accelerated takes as they are; leave that context first")


def without_cache(model: nn.Module) -> dict[str, bool]:
    """Argument that keeps a generative model from filling a cache; encoders have none to fill."""
    return {"use_cache": False} if getattr(model, "can_generate", bool)() else {}


@contextmanager
def as_qcfs(model: nn.Module) -> Iterator[nn.Module]:
    """The same model as QCFS model (no time), for the length of the context, in which only this thread may call it."""
    clock = clock_of(model)
    with clock.changing("a run as QCFS model"):
        stage, clock.stage = clock.stage, "qcfs"
        try:
            yield model
        finally:
            clock.stage = stage


@contextmanager
def at_time(model: nn.Module, **changes: Any) -> Iterator[nn.Module]:
    """The model under another coding or time, for the length of the context, in which only this thread may call it."""
    clock = clock_of(model)
    with clock.changing("a run in another time"):
        config = clock.config
        clock.config = config.replaced(**changes)
        clock.config.note_if_too_short()
        try:
            yield model
        finally:
            clock.config = config
