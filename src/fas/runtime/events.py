"""The event executor: one timestep at a time, consumers read real 0/±1 spikes, θ is folded into their weights.

It is the oracle of the folded run (zero spike differences in fp64) and what third-party counters and exports
see. Its neurons are written as step loops on purpose, sharing no arithmetic with `fas.neurons`.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from fas.errors import FasError
from fas.models.linear import is_plain, obstacle
from fas.neurons import Site
from fas.offloading import refuse_offloaded
from fas.runtime import event_attention
from fas.runtime.adaptive import refuse_inside
from fas.runtime.control import clock_of, sites_of
from fas.runtime.folding import FoldHook, ReadoutHook, follow
from fas.runtime.hooks import SiteHook
from fas.runtime.reclassed import choose_attention


@dataclass
class EventRun:
    """What `EventExecutor` returns."""

    output: ModelOutput
    """The model's output; its segments run one after another, each hands its readout to the next."""
    spikes: dict[str, Tensor]
    """By site name: ternary spikes ``[T, B, S, C]``, int8 (of P neurons a channel ``[T, B, S, C·P]``)."""

    @property
    def logits(self) -> Tensor:
        """The output's logits, e.g. ``[B, S, vocabulary]``."""
        return self.output["logits"]


@dataclass
class _Time:
    now: int = 0
    """The running timestep t, 1 … T."""


class _Neuron:
    """The neurons of one site, stepped through time; fires once a timestep for all consumers."""

    def __init__(self, site: Site, time: _Time) -> None:
        self.config, self.signed, self.levels, self.time = site.clock.config, site.signed, site.levels, time
        self.site = site
        self.threshold, self.v_init, self.a_init = (value.detach() for value in site.neuron_values(self.config))
        self.constant = site.constant_for(self.config)
        self.steps = [int(k) for k in site.steps_for(self.config)] if self.config.coding == "sigma_delta" else []
        self.zones = list(site.dead_zone_for(self.config)) or [0.0] * len(self.steps)
        self.each = max(1, len(self.steps) // self.config.timesteps)
        if self.config.coding == "sigma_delta" and not torch.equal(self.a_init, self.a_init.round()):
            raise FasError(
                f"site {site.name} starts from a_init that is not integer; its spikes could not reach the grid"
            )
        self.train: list[Tensor] = []

    @property
    def unit(self) -> Tensor:
        """What one spike (of weight 1) is worth ``[C]``: θ, or the grid's step θ/L."""
        return self.threshold / self.levels if self.config.coding == "sigma_delta" else self.threshold

    def start(self, batch: int) -> None:
        self.train, self.batch = [], batch
        self.received: Tensor | float = 0.0
        self.potential: Tensor | None = None
        self.level = self.a_init.to(torch.int32)

    def spikes(self, x: Tensor) -> Tensor:
        """This timestep's spikes ``[P·B, …, C]`` of the running value (step rows: the charge) ``x`` ``[B, …, C]``."""
        if len(self.train) < self.time.now:
            wide = self.site.rotated(x.to(torch.promote_types(x.dtype, torch.float32)))  # analog, before the neuron
            if self.config.coding == "sigma_delta":
                spike = torch.cat([self._track(wide, k, zone) for k, zone in zip(*self.settings(), strict=True)])
            else:
                spike = self._integrate(wide)
            self.train.append(spike.to(torch.int8))
        return self.train[-1]

    def weights(self) -> list[int]:
        """What the spikes of this timestep are worth, of each of the P neurons of a channel."""
        return self.settings()[0]

    def settings(self) -> tuple[list[int], list[float]]:
        """Step and dead zone of each neuron of a channel at this timestep."""
        now = slice((self.time.now - 1) * self.each, self.time.now * self.each)
        return self.steps[now], self.zones[now]

    def record(self) -> Tensor:
        """The whole train ``[T, B, S, C·P]``; where patches were merged, in the rows that were left."""
        rows = len(self.train[0]) // self.each
        batch = self.batch if rows % self.batch == 0 else rows
        shape = len(self.train), self.each, batch, -1, len(self.threshold)
        return torch.stack(self.train).reshape(shape).movedim(1, -1).flatten(-2)

    def running(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """After this timestep's spikes of ``x``: the running integer ``[B, …, C]``, the worth ``[C]`` of one, and over how
        many timesteps it is a mean."""
        spikes = self.spikes(x)
        if self.config.coding == "sigma_delta":
            return self.level.to(x.dtype), self.unit.to(x.dtype), 1.0
        if self.config.rows == "step":
            return spikes.to(x.dtype), self.threshold.to(x.dtype), 1.0
        count = torch.stack(self.train).sum(0, dtype=torch.int32)
        return count.to(x.dtype), self.threshold.to(x.dtype), float(self.time.now)

    def _integrate(self, x: Tensor) -> Tensor:
        threshold = self.threshold.to(x.dtype)
        if self.potential is None:
            self.potential = (self.v_init.to(x.dtype) * threshold).expand_as(x)
        charge = x
        if self.config.rows == "mean":
            received = self.time.now * x
            charge, self.received = received - self.received, received
        potential = self.potential + charge
        spike = torch.where(potential >= threshold, 1, 0)
        if self.signed:
            spike = torch.where(potential < 0, -1, spike)
        self.potential = potential - threshold * spike
        return spike

    def _track(self, x: Tensor, k: int, zone: float) -> Tensor:
        levels = self.levels
        low = -levels if self.signed else 0
        goal = (x / self.unit.to(x.dtype)).clamp(low, levels)
        potential = (goal - self.level) / k + self.v_init.to(x.dtype)
        spike = torch.where(potential >= 1 + zone, 1, torch.where(potential < -zone, -1, 0)).to(torch.int32)
        moved = self.level + k * spike
        spike = torch.where((moved < low) | (moved > levels), 0, spike)
        self.level = self.level + k * spike
        return spike


class _Consumer:
    """A linear layer that reads spikes: θ is folded into its weight, its products are accumulated behind it."""

    def __init__(self, module: Any, neuron: _Neuron) -> None:
        self.neuron, self.config, self.time = neuron, neuron.config, neuron.time
        self.constant: Tensor | float = 0.0
        if neuron.constant is not None:
            self.constant = module.forward(neuron.constant.to(module.weight.dtype)[None])[0].detach()
        elif module.bias is not None:
            self.constant = module.bias.detach().clone()
        by_channel = neuron.unit.to(module.weight.dtype)
        # Conv1D keeps its weight transposed
        folded = module.weight * (by_channel if isinstance(module, nn.Linear) else by_channel[:, None])
        module.weight = nn.Parameter(folded.detach(), requires_grad=False)
        if module.bias is not None:
            module.bias = nn.Parameter(torch.zeros_like(module.bias), requires_grad=False)
        if self.config.coding == "sigma_delta":
            self.constant = self.constant + module.forward(neuron.a_init.to(folded.dtype)[None])[0].detach()
        module.register_forward_pre_hook(self.read)
        # in front of a hook that encodes the output: it is the running value that is encoded
        module.register_forward_hook(self.accumulate, prepend=True)

    def start(self) -> None:
        self.total: Tensor | float = 0.0

    def read(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Pre-hook: spikes instead of values."""
        return (self.neuron.spikes(args[0]).to(module.weight.dtype), *args[1:])

    def accumulate(self, module: nn.Module, args: Any, product: Tensor) -> Tensor:
        """Hook: the running value (step rows: the charge) of the layer's output; bias and a₀ enter once."""
        if self.config.coding == "sigma_delta":
            weights: list[int] = self.neuron.weights()
            total: Any = self.total
            for k, part in zip(weights, product.chunk(len(weights)), strict=True):
                total = k * part + total  # a shift in hardware
            self.total = total
            return total + self.constant
        if self.config.rows == "step":
            return product + self.constant
        self.total = self.total + product
        return self.total / self.time.now + self.constant


class _Stepped:
    """A segment's forward, run for t = 1 … T on the same arguments before the rest of the model goes on.

    Its parts start anew at each call. Gives out the last timestep, or the mean where rows carry single steps.
    """

    def __init__(self, module: nn.Module, fold: FoldHook, neurons: list[_Neuron], readers: list[_Consumer]) -> None:
        self.module, self.fold, self.neurons, self.readers = module, fold, neurons, readers
        self.forward, self.config = module.forward, fold.clock.config
        self.attends = any(type(part).__name__ == fold.family.block for part in module.modules())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _, batch = self.fold.rows(self.module, args, kwargs)
        for neuron in self.neurons:
            neuron.start(batch)
        for reader in self.readers:
            reader.start()
        outputs: list[Any] = []
        for now in range(1, self.config.timesteps + 1):
            for neuron in self.neurons:
                neuron.time.now = now
            if now == 1 or self.config.rows == "step":
                event_attention.start(self.module)
            event_attention.tick(self.module)
            outputs = [*(outputs if self.config.rows == "step" else ()), self.forward(*args, **kwargs)]
        if self.attends and not event_attention.has_run(self.module):
            raise FasError(
                f"{type(self.module).__name__} ignores the attention interface; its events cannot be executed"
            )
        return _mean(outputs)


def _mean(outputs: list[Any]) -> Any:
    """The mean of what a segment gave out at each timestep, tensor by tensor."""
    first = outputs[0]
    if len(outputs) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.stack(outputs).mean(0)
    if isinstance(first, ModelOutput):
        for key in list(first.keys()):
            first[key] = _mean([output[key] for output in outputs])
        return first
    if isinstance(first, tuple | list):
        return type(first)(_mean(list(entries)) for entries in zip(*outputs, strict=True))
    return first


class EventExecutor:
    """Runs a copy of a converted ``model`` event by event, at the coding and time that the model is set to now.

    Raises `FasError` for a model that simulates no time (not converted, or scheduled layerwise).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        clock = clock_of(model)
        if not clock.folds:
            raise FasError("there are no timesteps to execute: convert the model and choose schedule='synchronous'")
        refuse_inside(clock, "the event executor")
        self.turn = threading.Lock()  # its neurons remember what they did
        refuse_offloaded(model, "the event executor")
        follow(model)
        _refuse_unplain(model)
        self.model = copy.deepcopy(model).eval()
        self.config, self.time = clock.config, _Time()
        choose_attention(self.model, event_attention.NAME)
        found = _take_hooks(self.model)
        sites = sites_of(self.model)
        self.neurons = {name: _Neuron(site, self.time) for name, site in sites.items()}
        event_attention.connect(self.model, self.neurons)
        readers = {
            module: _Consumer(module, self.neurons[h.site.name]) for module, h in found if isinstance(h, SiteHook)
        }
        for segment, hook in found:
            if isinstance(hook, FoldHook):
                inside = list(segment.modules())
                neurons = [self.neurons[module.name] for module in inside if isinstance(module, Site)]
                reading = [readers[module] for module in inside if module in readers]
                segment.forward = _Stepped(segment, hook, neurons, reading)  # type: ignore[assignment]

        _put_neurons(self.model, self.neurons)

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> EventRun:
        """Simulate T timesteps; ``inputs`` are the model's keyword arguments (``input_ids`` ``[B, S]`` …), no cache."""
        if inputs.get("past_key_values") is not None:
            raise FasError("the event executor runs whole sequences; pass no past_key_values")
        with self.turn:
            for neuron in self.neurons.values():
                neuron.train = []
            output = self.model(**(inputs | {"use_cache": False, "return_dict": True}))
            return EventRun(output, {name: neuron.record() for name, neuron in self.neurons.items() if neuron.train})


def _refuse_unplain(model: nn.Module) -> None:
    """Raise `FasError` for a consumer into whose weight thresholds cannot be folded."""
    for name, module in model.named_modules():
        if any(isinstance(hook, SiteHook) for hook in module._forward_pre_hooks.values()) and not is_plain(module):
            raise FasError(
                f"the event executor folds thresholds into weights, and {name} is a {type(module).__module__}."
                f"{type(module).__name__} ({obstacle(module) or 'it has a forward of its own'}); merge adapters "
                "(merge_and_unload), or run it before weights are quantized"
            )


class _EventSite(nn.Module):
    """Stands where an operator has a site: what it hands on is made of the spikes of its neurons, running."""

    def __init__(self, site: Site, neuron: _Neuron) -> None:
        super().__init__()
        self.neuron, self.scale = neuron, site.scale.detach()

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        running, worth, times = self.neuron.running(x)
        return running * worth / times


def _put_neurons(model: nn.Module, neurons: dict[str, _Neuron]) -> None:
    """Give groups, populations and factors of products their neurons in place of their sites."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Site) and module.kind in ("group", "norm", "output"):
            model.set_submodule(name, _EventSite(module, neurons[module.name]))


def _take_hooks(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Remove FAS's hooks of the folded run from ``model`` and return them with their modules."""
    found: list[tuple[nn.Module, Any]] = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            ours = {key: hook for key, hook in hooks.items() if isinstance(hook, SiteHook | FoldHook | ReadoutHook)}
            found += [(module, hook) for hook in ours.values()]
            for key in ours:
                del hooks[key]  # type: ignore[attr-defined]
    return found
