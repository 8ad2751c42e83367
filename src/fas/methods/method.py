"""What a published conversion is to FAS: where it starts, what it does, what it costs in time. One file each registers it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.errors import ConfigError
from fas.neurons import Fired, Site
from fas.progress import Progress
from fas.runtime.control import clock_of, sites_of

Neuron = Callable[[Site, Tensor], Fired]
"""(site, values) → what goes on, spikes and their worth; see `fas.neurons.Clock.neuron`."""
Batches = Sequence[Mapping[str, Any]]
Build = Callable[[PreTrainedModel, SpikingConfig, int, Batches, Progress], Neuron | None]
"""(model, configuration, T, calibration batches, progress): makes the model an SNN in place; its neuron, if it has one."""


@dataclass(frozen=True)
class Method:
    """A conversion as others, or we, published it."""

    name: str
    title: str
    source: str
    """Paper, and equations where they are known."""
    start: Literal["control", "qcfs"]
    """From the fine-tuned ANN, without further training; or from the QCFS model that Stage 1 trained from the same ANN."""
    build: Build
    place: Callable[[int], Mapping[str, Any]] = lambda timesteps: {}
    """What of the configuration it needs for T, such as the coding."""
    waits: bool = False
    """Whether a layer fires only when it has seen all of its input: then the network takes T × depth timesteps, not T."""
    before: int = 0
    """Timesteps of the whole network that run first for each answer."""
    rounds: int = 1
    """How often the T timesteps run for each answer."""
    assumed: str = ""
    """What the sources here do not say, and how it was set."""

    def config(self, base: SpikingConfig, timesteps: int) -> SpikingConfig:
        """The configuration for T = ``timesteps``; in the layerwise schedule it is the neuron that knows T."""
        changes = dict(self.place(timesteps))
        layerwise = changes.get("schedule") == "layerwise"
        return base.replaced(**changes, timesteps=base.levels if layerwise else timesteps)

    def latency(self, timesteps: int, depth: int) -> int:
        """Timesteps until the network has answered, ``depth`` sites being in series."""
        return (self.before + self.rounds * timesteps) * (depth if self.waits else 1)

    def spent(self, timesteps: int) -> float:
        """For an answer, times what the last T timesteps spend."""
        return self.rounds + self.before / timesteps


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Make ``method`` known by its name; raises `ConfigError` for a second one of that name."""
    if method.name in _METHODS:
        raise ConfigError(f"a method called {method.name!r} is registered already; choose another name")
    _METHODS[method.name] = method
    return method


def methods() -> dict[str, Method]:
    """All registered methods by name."""
    return dict(_METHODS)


def method_named(name: str) -> Method:
    """Raises `ConfigError` for an unknown name."""
    if name not in _METHODS:
        raise ConfigError(f"method {name!r} is not known; choose of {', '.join(_METHODS)}")
    return _METHODS[name]


def built(
    method: Method,
    model: PreTrainedModel,
    base: SpikingConfig,
    timesteps: int,
    batches: Iterable[Mapping[str, Any]],
    progress: Progress,
) -> SpikingConfig:
    """Make ``model`` (what `Method.start` says) the method's SNN in place, for the configuration that is returned."""
    config = method.config(base, timesteps)
    neuron = method.build(model, config, timesteps, list(batches), progress)
    clock = clock_of(model)
    with clock.changing(f"the method {method.name}"):
        clock.neuron = neuron
    return config


def depth_of(model: PreTrainedModel) -> int:
    """Sites in series, one waiting for the other; operands of one attention are side by side."""
    stages: dict[str, None] = {}
    for name, site in sites_of(model).items():
        stages.setdefault(name.rsplit(".", 1)[0] + ".operands" if site.kind == "operand" else name)
    return len(stages)
