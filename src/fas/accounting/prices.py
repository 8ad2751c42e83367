"""Energy models: constants and which counts they price, read from one data file that a user can replace."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, ValidationError, model_validator

from fas.accounting.work import Work
from fas.errors import FasError

DEFAULT = Path(__file__).with_name("energy_models.yaml")
AnnRow = Literal["ann_fp32", "ann_fp16", "ann_int8"]
Count = Literal[
    "macs", "acs", "shifts", "adds", "muls", "functions", "updates",
    "weight_words", "activation_words", "state_words", "events",
]  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Precision(_Strict):
    """pJ per operation at one precision."""

    bits: PositiveInt
    add: NonNegativeFloat
    mul: NonNegativeFloat
    function: NonNegativeFloat
    shift: NonNegativeFloat

    @property
    def mac(self) -> float:
        """A multiply-accumulate."""
        return self.mul + self.add


class Memory(_Strict):
    """pJ per bit that is read or written, and how wide states and events are."""

    activation: NonNegativeFloat
    weight: NonNegativeFloat
    state_bits: PositiveInt
    event_bits: PositiveInt


class Column(_Strict):
    """One energy model: which counts it prices, and the precision of each row."""

    name: str
    says: str
    source: str
    counts: tuple[Count, ...]
    ann: dict[AnnRow, str]
    quantized: str
    snn: str
    break_even: Literal["ann_fp32", "ann_fp16", "ann_int8", "quantized"]


class EnergyModels(_Strict):
    """The whole file."""

    precisions: dict[str, Precision]
    weight_bits: PositiveInt
    memory: Memory
    columns: tuple[Column, ...]

    @model_validator(mode="after")
    def _known(self) -> EnergyModels:
        for column in self.columns:
            for name in (*column.ann.values(), column.quantized, column.snn, "int8"):
                if name not in self.precisions:
                    raise ValueError(f"column {column.name!r} names the precision {name!r}, which is not in the file")
            if column.break_even != "quantized" and column.break_even not in column.ann:
                raise ValueError(f"column {column.name!r} has no row {column.break_even!r} to break even with")
        return self

    def energy(self, work: Work, column: Column, precision: str, activation_bits: int | None = None) -> float:
        """pJ of ``work`` in ``column`` at ``precision``; its products are of ``activation_bits`` by weight_bits, if given."""
        price, memory = self.precisions[precision], self.memory
        mac, weight_bits, value_bits = price.mac, price.bits, price.bits
        if activation_bits is not None:
            integer = self.precisions["int8"]
            mac = integer.mul * activation_bits * self.weight_bits / 64 + integer.add
            weight_bits, value_bits = self.weight_bits, activation_bits
        prices = {
            "macs": mac,
            "acs": price.add,
            "shifts": price.shift,
            "adds": price.add,
            "muls": price.mul,
            "functions": price.function,
            "updates": 2 * price.add,
            "weight_words": memory.weight * weight_bits,
            "activation_words": memory.activation * value_bits,
            "state_words": memory.activation * memory.state_bits,
            "events": memory.activation * memory.event_bits,
        }
        return sum(getattr(work, count) * prices[count] for count in column.counts)


def energy_models(path: Path | str | None = None) -> EnergyModels:
    """The models of ``path``, or the built-in ones. Raises `FasError` for a file that is not of that shape."""
    file = Path(path) if path is not None else DEFAULT
    try:
        return EnergyModels.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FasError(f"the energy model {file} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise FasError(f"the energy model {file} is not valid: {where}: {first['msg']}") from None
