"""SpikingConfig: the one validated description of a conversion. It is saved in the checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fas.errors import CheckpointError, ConfigError
from fas.notes import warn
from fas.steps import default_steps, is_complete

CONFIG_VERSION = 1
USUAL_LEVELS, USUAL_TIMESTEPS = 15, 8
"""L and T where nobody says another, on the command line and in Python."""

Part = Literal["vision", "projector", "text"]
Coverage = Literal["ffn", "linear", "attention", "full"]
Activation = Literal["replace", "keep"]
Scales = Literal["channel", "tensor"]
Coding = Literal["rate", "sigma_delta"]
Rows = Literal["mean", "step"]
Schedule = Literal["synchronous", "layerwise"]
CacheKind = Literal["exact", "settled"]
Rotation = Literal["hadamard", "heads", "none"]


class SpikingConfig(BaseModel):
    """How a model is made to spike. Immutable; `replaced` gives a changed, newly validated copy.

    Raises `ConfigError` with one sentence where a value is out of range, unknown, or contradicts another.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = CONFIG_VERSION
    """Format of this description; a checkpoint of a newer version is refused."""
    coverage: Coverage = "linear"
    """Which operands spike: ``ffn`` (input of the FFN down-projection), ``linear`` (inputs of all linear layers),
    ``attention`` (also query, key, value and probabilities of the attention products) or ``full`` (also softmax, norms and
    activations, by groups of spiking neurons)."""
    levels: int = Field(default=USUAL_LEVELS, ge=1, le=1024)
    """L: signed grid {−L…L}, unsigned {0…L}; the step of the grid is λ/L."""
    coding: Coding = "sigma_delta"
    """How a value lives in time: ``rate`` (soft-reset integrate-and-fire) or ``sigma_delta`` (tracking quantizer)."""
    timesteps: int = Field(default=USUAL_TIMESTEPS, ge=1, le=1024)
    """T, steps of simulated time."""
    neurons_per_channel: int = Field(default=1, ge=1, le=16)
    """sigma_delta only: P, neurons that encode a channel together. In every timestep they fire one after the other, each on
    what those before it have left (a group, as operators have them; they follow an input that moves P times as fast)."""
    steps: tuple[int, ...] | None = None
    """sigma_delta only: the power of two a spike of each timestep is worth, P·T of them where P neurons share a channel; None
    takes the default for (L, P·T)."""
    rows: Rows = "mean"
    """rate only: rows carry the running ``mean``, or one ``step``'s charge (the paper's way, for reproduction)."""
    schedule: Schedule = "synchronous"
    """``synchronous``: all layers advance together; ``layerwise``: a layer fires after its whole input (T = L)."""
    rotation: Rotation = "hadamard"
    """``hadamard``: products of gated FFNs, which have heavy tails, are rotated (analog additions) before they spike;
    ``heads``: so are outputs of attention, across heads, whose sizes differ from token to token."""
    center: bool = False
    """Whether signed inputs of linear layers spike as distances from each channel's mean, which the biases behind add."""
    scales: Scales = "channel"
    """One threshold a ``channel``, which is folded into the weights that read it (as if the scale had migrated into the norm
    in front), so that channels with outliers have their own; or one a ``tensor``, for comparison."""
    activation: Activation = "replace"
    """Pointwise activations of FFNs: ``replace`` (an unsigned unit stands in for them, the paper's way) or ``keep``."""
    parts: tuple[Part, ...] = ()
    """Parts of a vision-language model that spike: ``vision``, ``projector``, ``text``; the others stay analog; () is all."""
    targets: tuple[str, ...] = ()
    """Sites that spike, of those of the coverage: exact names, or ``re:`` and what the whole name matches; () is all."""
    ignore: tuple[str, ...] = ()
    """Sites that stay analog, named in the same way."""
    prefix: Literal["auto"] | tuple[int, ...] = "auto"
    """Tokens whose keys and values stand in front of every sequence as constants of the model, so that no token that is
    encoded has massive activations (`fas.runtime.prefix`); ``auto``: found on the calibration data, () where nothing is
    massive."""
    cache: CacheKind = "exact"
    """Key/value cache: ``exact`` keeps every timestep of past tokens, ``settled`` only their last (T times less)."""

    if not TYPE_CHECKING:  # type checkers know the fields as arguments, of every pydantic model without its own

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ConfigError(_one_sentence(error)) from None

    @field_validator("levels", "timesteps", "neurons_per_channel", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("it must be a whole number, and True and False are none")
        return value

    @model_validator(mode="after")
    def _agree(self) -> SpikingConfig:
        if self.coding == "rate" and self.steps is not None:
            raise ValueError("steps describe the sigma_delta coding; remove them or choose coding='sigma_delta'")
        if self.coding == "rate" and self.neurons_per_channel > 1:
            raise ValueError(
                f"neurons_per_channel={self.neurons_per_channel} needs coding='sigma_delta', whose neurons share a channel by "
                "the worth of their spikes; set neurons_per_channel=1"
            )
        if self.coding == "sigma_delta" and self.rows != "mean":
            raise ValueError("rows='step' belongs to coding='rate'; sigma_delta rows always carry the running sum")
        if self.schedule == "layerwise" and self.timesteps != self.levels:
            raise ValueError(
                f"the layerwise schedule fires one spike a level, so timesteps ({self.timesteps}) must equal levels "
                f"({self.levels}); set timesteps={self.levels} or convert with levels={self.timesteps}"
            )
        if self.steps is not None:
            self._check_steps(self.steps)
        return self

    def _check_steps(self, steps: tuple[int, ...]) -> None:
        if len(steps) != self.timesteps * self.neurons_per_channel:
            raise ValueError(
                f"steps {list(steps)} has {len(steps)} entries for T={self.timesteps}, {self.neurons_per_channel} a timestep; "
                "give one a timestep and neuron of a channel"
            )
        if any(k < 1 or k & (k - 1) for k in steps):
            raise ValueError(f"steps {list(steps)} must be powers of two (a weighted spike is a shift in hardware)")

    def note_if_too_short(self) -> None:
        """Warn, at the user's line, where some constant inputs do not settle within T; for what is about to use this time."""
        if self.coding != "sigma_delta" or not self.folds_time or is_complete(self.step_schedule, self.levels):
            return
        steps, unsettled = list(self.step_schedule), "some constant inputs do not settle"
        if self.steps is not None:
            warn(f"steps {steps} are incomplete for {self.levels} levels: {unsettled}")
        else:
            warn(f"{self.timesteps} timesteps are few for {self.levels} levels: with steps {steps} {unsettled}")

    @property
    def step_schedule(self) -> tuple[int, ...]:
        """k_1 … k_PT of the sigma_delta coding (the default for (L, P·T) where none was given)."""
        return self.steps or default_steps(self.levels, self.timesteps * self.neurons_per_channel)

    @property
    def folds_time(self) -> bool:
        """Whether time has to be simulated: not in the layerwise schedule, whose counts are the QCFS model's codes."""
        return self.schedule == "synchronous"

    @property
    def neuron_key(self) -> str:
        """Name under which a site stores the neuron parameters calibrated for this coding and time."""
        if self.coding == "rate":
            return f"rate_{self.rows}_{self.timesteps}"
        several = f"x{self.neurons_per_channel}_" if self.neurons_per_channel > 1 else ""
        return f"sigma_delta_{several}" + "_".join(map(str, self.step_schedule))

    def replaced(self, **changes: Any) -> SpikingConfig:
        """A validated copy with ``changes``; a new T or coding drops a step schedule that no longer applies."""
        values = self.model_dump() | changes
        moved = any(
            name in changes and changes[name] != getattr(self, name)
            for name in ("timesteps", "coding", "levels", "neurons_per_channel")
        )
        if moved and "steps" not in changes:
            values["steps"] = None
        if changes.get("coding") == "sigma_delta" and "rows" not in changes:
            values["rows"] = "mean"
        if changes.get("coding") == "rate" and "neurons_per_channel" not in changes:
            values["neurons_per_channel"] = 1
        return SpikingConfig(**values)

    def for_key(self, key: str) -> SpikingConfig:
        """This conversion under the coding and time that a `neuron_key` names."""
        if key.startswith("rate_"):
            _, rows, timesteps = key.split("_")
            return self.replaced(schedule="synchronous", coding="rate", rows=rows, timesteps=int(timesteps))
        steps, neurons = steps_in(key), neurons_in(key)
        return self.replaced(
            schedule="synchronous", coding="sigma_delta", timesteps=len(steps) // neurons, steps=steps,
            neurons_per_channel=neurons,
        )  # fmt: skip

    def closest(self, keys: Iterable[str], chosen: Collection[str] = ()) -> SpikingConfig:
        """This configuration, or the calibrated one (of ``keys``) of the same coding and T where steps and rows were not
        themselves ``chosen``."""
        keys = list(keys)
        if self.neuron_key in keys or {"steps", "rows", "neurons_per_channel"} & set(chosen):
            return self
        same = [c for c in map(self.for_key, keys) if (c.coding, c.timesteps) == (self.coding, self.timesteps)]
        return same[0] if same and self.folds_time else self

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SpikingConfig:
        """Read back from a checkpoint; raises `CheckpointError` if a newer FAS wrote it."""
        version = values.get("version", CONFIG_VERSION)
        if not isinstance(version, int) or version > CONFIG_VERSION:
            raise CheckpointError(
                f"the checkpoint has format version {version}, this FAS reads up to {CONFIG_VERSION}; upgrade fas-snn"
            )
        # a checkpoint that names no rotation or prefix was written before there was one
        earlier: dict[str, Any] = {"rotation": "none", "prefix": ()}
        return cls(**earlier | values)


def steps_in(neuron_key: str) -> tuple[int, ...]:
    """The step schedule that a key of `SpikingConfig.neuron_key` names (empty for the rate coding).

    >>> steps_in("sigma_delta_4_2_1"), steps_in("rate_mean_8")
    ((4, 2, 1), ())
    """
    prefix = "sigma_delta_"
    entries = neuron_key.removeprefix(prefix).split("_")
    return tuple(int(k) for k in entries if not k.startswith("x")) if neuron_key.startswith(prefix) else ()


def neurons_in(neuron_key: str) -> int:
    """How many neurons share a channel, by a key of `SpikingConfig.neuron_key`.

    >>> neurons_in("sigma_delta_x2_4_2_1_1"), neurons_in("sigma_delta_4_2_1"), neurons_in("rate_mean_8")
    (2, 1, 1)
    """
    several = neuron_key.removeprefix("sigma_delta_").split("_")[0]
    return int(several[1:]) if several.startswith("x") else 1


def spoken(neuron_key: str) -> str:
    """A key of `SpikingConfig.neuron_key` in words.

    >>> spoken("sigma_delta_4_2_1"), spoken("rate_mean_8"), spoken("rate_step_8")
    ('sigma-delta, T = 3 (steps 4, 2, 1)', 'rate, T = 8', 'rate, T = 8 (step rows)')
    >>> spoken("sigma_delta_x2_4_2_1_1")
    'sigma-delta, T = 2 (2 neurons a channel, steps 4, 2, 1, 1)'
    """
    if neuron_key.startswith("rate_"):
        _, rows, timesteps = neuron_key.split("_")
        return f"rate, T = {timesteps}" + (" (step rows)" if rows == "step" else "")
    steps, neurons = steps_in(neuron_key), neurons_in(neuron_key)
    several = f"{neurons} neurons a channel, " if neurons > 1 else ""
    return f"sigma-delta, T = {len(steps) // neurons} ({several}steps {', '.join(map(str, steps))})"


def _one_sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if not where:
        return message
    if first["type"] == "extra_forbidden":
        known = ", ".join(SpikingConfig.model_fields)
        return f"unknown setting {where!r}; known settings are {known}"
    return f"{where}={first['input']!r} is not valid: {message[0].lower()}{message[1:]}"
