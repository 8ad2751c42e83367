"""A site: one tensor of the network that becomes spikes, encoded once for all its consumers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fas.config import SpikingConfig, neurons_in, steps_in
from fas.errors import FasError
from fas.neurons.clock import Clock
from fas.neurons.fused import kernels_for
from fas.neurons.integrate_fire import rate_mean_rows, rate_step_rows
from fas.neurons.layerwise import ones_first
from fas.neurons.native import kernels
from fas.neurons.qcfs import codes, grid, qcfs
from fas.neurons.rotation import NO_ROTATION, Rotation, rotate
from fas.neurons.settled import restless
from fas.neurons.sigma_delta import sigma_delta
from fas.offloading import at_hand


class Neuron(NamedTuple):
    """θ, v₀, a₀ and the constant behind, each ``[C]``; k and δ of each step ``[PT]``."""

    threshold: Tensor
    v_init: Tensor
    a_init: Tensor
    constant: Tensor
    steps: Tensor
    dead_zone: Tensor

    @property
    def behind(self) -> Tensor | None:
        """The constant, if there is one."""
        return self.constant if bool(self.constant.any()) else None


class NeuronParameters(nn.Module):
    """What Stage 2 calibrates for one coding and time: per channel, fp32, positive where it must be.

    ``steps`` ``[T]`` is the site's own step schedule, ``dead_zone`` ``[T]`` how reluctantly each of them fires (sigma_delta;
    empty for rate): the firing threshold of each timestep. ``constant`` ``[C]``, in the unit of the rows, is no spike: the
    bias of the linear layers that read the site adds it.
    """

    def __init__(self, width: int, steps: Sequence[int] = (), device: torch.device | None = None) -> None:
        super().__init__()
        self.log_threshold = nn.Parameter(torch.zeros(width, dtype=torch.float32, device=device))
        self.v_init = nn.Parameter(torch.full((width,), 0.5, dtype=torch.float32, device=device))
        self.register_buffer("a_init", torch.zeros(width, dtype=torch.float32, device=device))
        self.register_buffer("constant", torch.zeros(width, dtype=torch.float32, device=device))
        self.register_buffer("steps", torch.tensor(steps, dtype=torch.float32, device=device))
        self.register_buffer("dead_zone", torch.zeros(len(steps), dtype=torch.float32, device=device))
        self.a_init: Tensor
        self.constant: Tensor
        self.steps: Tensor
        self.dead_zone: Tensor

    @property
    def threshold(self) -> Tensor:
        """θ, positive by construction."""
        return self.log_threshold.exp()

    def forward(self) -> Neuron:
        """All of them: whoever needs them calls, so that what is hooked to a forward (offloading, sharding) sees it."""
        return Neuron(self.threshold, self.v_init, self.a_init, self.constant, self.steps, self.dead_zone)


class Site(nn.Module):
    """QCFS unit or spiking neuron in front of its consumers, as the shared clock says.

    ``width`` channels, ``signed`` or unsigned grid, ``consumers`` how many modules fetch one encoding, ``order`` its
    place in the run of the model, ``rotation`` the one in front of it, ``kind`` what it encodes
    (``input`` of linear layers, ``operand`` of attention …, as the family declares), ``replaces`` whether it stands in for an
    activation, which does not run then. λ is stored as ``log_scale`` ``[C]``
    (``[1]`` where the configuration has one a tensor); calibrated neuron parameters are kept per coding and time in
    ``neurons``.
    """

    def __init__(
        self,
        name: str,
        width: int,
        signed: bool,
        consumers: int,
        clock: Clock,
        order: int = 0,
        rotation: Rotation = NO_ROTATION,
        kind: str = "input",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.name, self.width, self.signed, self.consumers, self.clock = name, width, signed, consumers, clock
        self.order, self.rotation, self.kind = order, rotation, kind
        values = 1 if clock.config.scales == "tensor" and self.calibrates else width
        self.log_scale = nn.Parameter(torch.zeros(values, dtype=torch.float32, device=device))
        self.replaces = False
        centers = clock.config.center and signed and kind == "input"
        mean = torch.zeros(width, dtype=torch.float32, device=device) if centers else None
        self.register_buffer("center", mean)  # the biases behind add it
        self.center: Tensor | None
        self.neurons = nn.ModuleDict()

    @property
    def scale(self) -> Tensor:
        """λ ``[C]``, positive by construction."""
        scale: Tensor = at_hand(self, "log_scale")
        return scale.exp().expand(self.width)

    @property
    def calibrates(self) -> bool:
        """Whether Stage 2 fits its neurons: those of operators have thresholds that are the geometry of their function."""
        return self.kind not in ("group", "norm")

    @property
    def levels(self) -> int:
        """L of this site's grid: the configuration's; a group of operator neurons may have its own."""
        return self.clock.config.levels

    def parameters_for(self, config: SpikingConfig) -> NeuronParameters | None:
        """The neuron parameters calibrated for ``config``'s coding and time, or None."""
        key = config.neuron_key
        return self.neurons[key] if key in self.neurons else None  # type: ignore[return-value]

    def neuron_for(self, config: SpikingConfig) -> Neuron | None:
        """What was calibrated for ``config``'s coding and time, or None."""
        stored = self.parameters_for(config)
        return None if stored is None else stored()

    def add_parameters(self, key: str) -> NeuronParameters:
        """New neuron parameters under ``key``, starting from the uncalibrated values (θ = λ, v₀ = ½)."""
        fresh = NeuronParameters(self.width, self.starting_steps(steps_in(key), neurons_in(key)), self.log_scale.device)
        if not self.log_scale.is_meta:
            fresh.log_threshold.data.copy_(self.scale.detach().log())
        self.neurons[key] = fresh
        return fresh

    def encode(self, x: Tensor) -> Tensor:
        """The encoding of ``x``, computed once for all consumers that are handed the same tensor."""
        if self.consumers == 1:
            return self(self.rotated(x))
        memo = self.clock.now.memo
        kept = memo.get(self.name)
        if kept is None or kept[0] is not x:
            kept = memo[self.name] = [x, self(self.rotated(x)), self.consumers]
        kept[2] -= 1
        if kept[2] == 0:
            del memo[self.name]
        return kept[1]  # type: ignore[no-any-return]

    @property
    def _memo(self) -> list[Any] | None:
        """What the running call of this thread keeps for further consumers: input, encoding, and for how many."""
        return self.clock.now.memo.get(self.name)

    def rotated(self, x: Tensor) -> Tensor:
        """``x`` as the neurons see it (analog, fp32 or wider): rotated, and less the mean, where the site has those."""
        if self.rotation == NO_ROTATION and self.center is None:
            return x
        rows = rotate(_wide(x), self.rotation)
        return (rows if self.center is None else rows - at_hand(self, "center")).to(x.dtype)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode ``x`` ``[B, …, C]`` (QCFS, layerwise) or ``[T·B, …, C]`` (folded); arithmetic in fp32 or wider.

        ``visible`` (broadcast over time) is told to a probe: which neurons count.
        """
        clock, wide = self.clock, x if self._as_it_is(x) else _wide(x)
        self.meet()
        if not clock.folds:
            return self._quantize(wide, visible).to(x.dtype)
        self.require_segment()
        rows = self.over_time(wide)
        known = self._settings(wide.dtype)
        out, spikes = self._fire(rows, known)
        if known.constant is not None:
            out = out + known.constant
        if clock.early is not None:
            clock.early.see(self, rows.detach(), spikes.detach(), visible)
        if clock.probe is not None:
            self.tell(spikes, visible)
        return out.flatten(0, 1).to(x.dtype)

    def _as_it_is(self, x: Tensor) -> bool:
        """Whether a fused kernel widens ``x`` itself, and nobody else wants to see it wide."""
        clock = self.clock
        if x.dtype == torch.float32:
            return True
        watched = (clock.neuron, clock.probe, clock.early, clock.meter)
        return (
            all(entry is None for entry in watched)
            and not self.adds_constant(clock.config)
            and kernels_for(x) is not None
        )

    def meet(self) -> None:
        """Say that the site runs now, if somebody wants to know; it may run again for a backward pass."""
        if self.clock.now.expected is not None:
            self.clock.check_recomputed()
        if self.clock.met is not None:
            self.clock.met[self.name] = None

    def require_segment(self) -> None:
        """Raise `FasError` where time is not folded (a checkpoint's recomputation is inside); rows differ from now on."""
        now = self.clock.now
        now.still = False
        if now.depth == 0 and torch._C._current_graph_task_id() == -1:
            raise FasError(
                f"site {self.name} was reached outside a folded segment; call the model, or a whole segment of it, "
                "instead of an inner layer"
            )

    def over_time(self, x: Tensor) -> Tensor:
        """Rows ``[T·B, …]`` as ``[T, B, …]``."""
        timesteps = self.clock.config.timesteps
        return x.view(timesteps, x.shape[0] // timesteps, *x.shape[1:])

    def tell(self, spikes: Tensor, visible: Tensor | None) -> None:
        """Hand ``spikes`` ``[T, B, …, C]`` to the probe, which must be there; of P neurons a channel ``[P·T, B, …, C]`` as
        ``[T, B, …, C·P]``."""
        assert self.clock.probe is not None
        self.clock.now.visible = visible
        if self.clock.folds and len(spikes) > (timesteps := self.clock.config.timesteps):
            spikes = spikes.unflatten(0, (timesteps, -1)).movedim(1, -1).flatten(-2)
        self.clock.probe(self.name, spikes.detach())

    def _quantize(self, x: Tensor, visible: Tensor | None) -> Tensor:
        clock, levels, scale = self.clock, self.levels, self.scale
        scale = scale.to(torch.promote_types(x.dtype, scale.dtype))
        if clock.neuron is not None and clock.stage == "snn" and self.calibrates:
            value, spikes = self._own(x)
            if clock.probe is not None:
                self.tell(spikes, visible)
            return value
        if clock.probe is not None and clock.stage == "snn":
            self.tell(ones_first(codes(x.detach(), scale.detach(), levels, self.signed), levels), visible)
        if clock.meter is not None:
            clock.meter(self, x, visible)
        return qcfs(x, scale, levels, self.signed)

    def _own(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.clock.neuron is not None
        value, spikes, worth = self.clock.neuron(self, x)
        self.clock.now.worth = None if self.clock.probe is None else worth
        return value, spikes

    def _fire(self, rows: Tensor, known: _Settings) -> tuple[Tensor, Tensor]:
        if self.clock.neuron is not None and self.calibrates:
            return self._own(rows)
        config = self.clock.config
        if known.prepared is not None and self.clock.probe is None and self.clock.early is None and kernels.takes(rows):
            return known.prepared(rows), rows.new_empty(0)
        threshold, v_init, a_init = known.values
        told = self.clock.probe is not None or self.clock.early is not None
        if config.coding == "sigma_delta":
            steps, zones = known.steps, known.zones
            return sigma_delta(rows, threshold, v_init, a_init, steps, self.levels, self.signed, zones, told)
        neuron = rate_mean_rows if config.rows == "mean" else rate_step_rows
        return neuron(rows, threshold, v_init, self.signed, told)

    def _settings(self, dtype: torch.dtype) -> _Settings:
        """What `_fire` needs to know, in fp32 or wider; worked out once while the clock is frozen."""
        config, frozen = self.clock.config, self.clock.frozen
        if frozen is not None and (found := frozen.get((self.name, dtype))) is not None and found.config is config:
            if found.is_fresh():
                return found.made  # type: ignore[no-any-return]
            self.clock.rewritten += 1
        wide, stored = torch.promote_types(dtype, torch.float32), self.neuron_for(config)
        threshold, v_init, a_init = (value.to(wide) for value in self._values(stored))
        steps: Sequence[int] = self._steps(stored, config) if config.coding == "sigma_delta" else ()
        zones: Sequence[float] = stored.dead_zone.tolist() if stored and config.coding == "sigma_delta" else ()
        made = _Settings((threshold, v_init, a_init), steps, zones, None if stored is None else stored.behind)
        if frozen is not None and not torch.is_grad_enabled():
            made = made._replace(prepared=self._prepared(made))
            frozen[self.name, dtype] = _Frozen(config, made, self._read(config))
        return made

    def _read(self, config: SpikingConfig) -> list[Tensor]:
        """The parameters of which `_settings` are made."""
        stored = self.parameters_for(config)
        if stored is None:
            return [self.log_scale]
        return [value for value in (*stored._parameters.values(), *stored._buffers.values()) if value is not None]

    def _prepared(self, known: _Settings) -> kernels.Prepared | None:
        config, (threshold, v_init, a_init) = self.clock.config, known.values
        if not (kernels.takes(threshold, v_init) and kernels.shares()):
            return None
        if config.coding == "rate":
            mean = config.rows == "mean"
            return kernels.prepared_firing(threshold, v_init, self.width, config.timesteps, self.signed, mean)
        steps, zones = known.steps, known.zones or [0.0] * len(known.steps)
        bounds = grid(self.levels, self.signed)
        unit = threshold / self.levels
        return kernels.prepared_tracker(unit, v_init, a_init, self.width, steps, config.timesteps, bounds, zones)

    def restless(self, rows: Tensor, spikes: Tensor) -> Tensor:
        """Which neurons would fire again with their input held ``[T, B, …, C]`` (sigma_delta; see `fas.neurons.settled`)."""
        config = self.clock.config
        threshold, v_init, a_init = (value.detach().to(rows.dtype) for value in self.neuron_values(config))
        steps, zones = self.steps_for(config), self.dead_zone_for(config)
        return restless(rows, spikes, threshold, v_init, a_init, steps, self.levels, self.signed, zones)

    def neuron_values(self, config: SpikingConfig) -> tuple[Tensor, Tensor, Tensor]:
        """(θ, v₀, a₀), each ``[C]``: calibrated for ``config``, else θ = λ, v₀ = ½, a₀ = 0."""
        return self._values(self.neuron_for(config))

    def _values(self, stored: Neuron | None) -> tuple[Tensor, Tensor, Tensor]:
        if stored is not None:
            return stored.threshold, stored.v_init, stored.a_init
        scale = self.scale
        return scale, torch.full_like(scale, 0.5), torch.zeros_like(scale)

    def constant_for(self, config: SpikingConfig) -> Tensor | None:
        """What the layers behind add as bias ``[C]``: calibrated for ``config``, else None."""
        stored = self.neuron_for(config)
        return None if stored is None else stored.behind

    def adds_constant(self, config: SpikingConfig) -> bool:
        """Whether the layers behind add something that is no spike: where tracking starts, or an absorbed error."""
        stored = self.neuron_for(config) if self.clock.folds else None
        return stored is not None and bool(stored.a_init.any() | stored.constant.any())

    def steps_for(self, config: SpikingConfig) -> Sequence[int]:
        """k_1 … k_PT of this site: calibrated for ``config``, else the configuration's."""
        return self._steps(self.neuron_for(config), config)

    def _steps(self, stored: Neuron | None, config: SpikingConfig) -> Sequence[int]:
        if stored is not None:
            return [int(k) for k in stored.steps.tolist()]
        return self.starting_steps(config.step_schedule, config.neurons_per_channel)

    def dead_zone_for(self, config: SpikingConfig) -> Sequence[float]:
        """δ_1 … δ_PT of this site, in units of its steps: calibrated for ``config``, else none."""
        stored = self.neuron_for(config)
        return () if stored is None else stored.dead_zone.tolist()

    def starting_steps(self, steps: Sequence[int], neurons: int) -> Sequence[int]:
        """The schedule where nothing was calibrated: the configuration's ``steps`` for ``neurons`` a channel."""
        return steps

    def _apply(self, fn: Any, recurse: bool = True) -> Site:
        """Move with the model but keep fp32: bf16 thresholds would change 1.5 % of the codes (design review #10)."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)
        return self

    def extra_repr(self) -> str:
        return f"{self.name}, width={self.width}, signed={self.signed}, consumers={self.consumers}"


class _Settings(NamedTuple):
    """Of one site under one configuration: (θ, v₀, a₀) ``[C]``, k and δ of each step, and the constant behind."""

    values: tuple[Tensor, Tensor, Tensor]
    steps: Sequence[int]
    zones: Sequence[float]
    constant: Tensor | None
    prepared: kernels.Prepared | None = None
    """The same as one call, while the clock is frozen."""


class _Frozen:
    """Settings that were worked out once, and what they were made of."""

    __slots__ = ("config", "made", "values", "version")

    def __init__(self, config: SpikingConfig, made: _Settings, values: list[Tensor]) -> None:
        self.config, self.made, self.values = config, made, values
        self.version = sum(value._version for value in values)

    def is_fresh(self) -> bool:
        """Whether nobody has written to the parameters since."""
        version = 0
        for value in self.values:
            version += value._version
        return version == self.version


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
