"""`fas.ledger`: run a model once, under watch, and say what it did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fas.accounting.account import Account
from fas.accounting.encodings import silent
from fas.accounting.energy import EnergyTable, ann_work, bits_of, energy_table, snn_work
from fas.accounting.neurobench import SynapticOperations, metrics
from fas.accounting.parts import PartEntry, by_part, parts_of
from fas.accounting.prices import EnergyModels, energy_models
from fas.accounting.text import sections_of
from fas.accounting.watch import watching
from fas.errors import DataError, FasError
from fas.given import batch_for, model_from
from fas.models.linear import obstacle
from fas.neurons import Clock
from fas.offloading import refuse_offloaded
from fas.runtime.adaptive import refuse_inside
from fas.runtime.control import clock_of, sites_of
from fas.runtime.folding import follow
from fas.runtime.spikes import SpikeCount, counting
from fas.sections import Section, Shown

SCHEMA = "fas.ledger/1"


@dataclass
class SiteEntry:
    """One site: how often its neurons fired and what that did."""

    name: str
    kind: str
    neurons: int
    """Channels × real (unmasked) tokens."""
    spikes_per_neuron: float
    by_timestep: list[float]
    """Spikes per neuron in each timestep."""
    firing_rate: float
    """Spikes per neuron and timestep."""
    channels: int
    silent_channels: int
    """Channels that never fired."""
    updates: int
    macs: int
    """Multiply-accumulates (one evaluation) of the products that read it; a product of two sites counts at both."""
    accumulates: int


@dataclass
class ProductEntry:
    """One matrix product: spikes (``sites``) or analog."""

    module: str
    kind: str
    macs: int
    """Of one evaluation."""
    times: int
    """How often the simulation ran it."""
    accumulates: int
    shifts: int
    sites: list[str]


@dataclass
class OperationEntry:
    """Other operations of one module: how many values, and how often."""

    module: str
    kind: str
    elements: float
    times: int
    sites: list[str]
    """Whose spikes were accumulated instead; empty if it is analog."""


@dataclass
class Statement:
    """The account of one forward: a whole batch, or one decoding step."""

    tokens: int
    macs: int
    """Multiply-accumulates of the ANN."""
    macs_replaced: int
    macs_analog_executed: int
    """Multiply-accumulates that the spiking network still ran, over all timesteps."""
    functions: int
    """Exponentials, roots and divisions of the ANN."""
    functions_analog: int
    """Those that the spiking network still evaluated, over all timesteps."""
    accumulates: int
    shifts: int
    updates: int
    spikes: int
    spikes_per_neuron: float
    sites: list[SiteEntry] = field(repr=False)
    products: list[ProductEntry] = field(repr=False)
    operations: list[OperationEntry] = field(repr=False)
    energy: EnergyTable = field(repr=False)
    overhead: dict[str, float] = field(repr=False)
    """Values that only the simulation moved (folding, readout): listed, not charged."""
    unknown: dict[str, int]
    notes: list[str]

    @property
    def share(self) -> float:
        """Multiply-accumulates that became accumulates."""
        return self.macs_replaced / self.macs if self.macs else 0.0

    @property
    def firing_rate(self) -> float:
        """Spikes per neuron and timestep, all sites pooled."""
        steps = max((len(site.by_timestep) for site in self.sites), default=1)
        return self.spikes_per_neuron / steps


@dataclass
class Ledger(Shown):
    """What a model executed and what it costs. ``forward`` is the given batch, ``decode`` one more token with a cache."""

    model: str
    forward: Statement
    decode: Statement | None = None
    conversion: dict[str, Any] = field(default_factory=dict)
    neurobench: dict[str, float] | None = None
    """NeuroBench's metrics of ``forward``, by its definitions."""
    parts: list[PartEntry] = field(default_factory=list)
    """``forward`` by vision tower, projector and text model, of a model that has several."""
    schema: str = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in `json_schema`."""
        return asdict(self)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dict a site, such as pandas.DataFrame takes."""
        return [asdict(site) for site in self.forward.sites]

    def sections(self) -> list[Section]:
        """As `fas energy` and a notebook show it."""
        return sections_of(self)

    @property
    def headline(self) -> str:
        """The account in one line."""
        return headline(self.forward, self.conversion)


def json_schema() -> dict[str, Any]:
    """JSON schema of `Ledger.to_dict`; the docs hold a copy (``python -m fas.accounting.ledger`` prints it)."""
    return TypeAdapter(Ledger).json_schema()


def headline(statement: Statement, conversion: Mapping[str, Any]) -> str:
    """What became spikes, how many they are, and what that costs in every energy model."""
    if not conversion:
        return f"{statement.macs:,} multiply-accumulates, none of them replaced: this model has no spikes"
    energy = ", ".join(
        f"×{statement.energy.ratios['snn_strict'][entry.column]:.3g} of the {entry.against.replace('_', ' ')} ({entry.column})"
        for entry in statement.energy.break_even
    )
    return (
        f"{statement.share:.1%} of multiply-accumulates became accumulates; {statement.spikes_per_neuron:.3g} spikes per "
        f"neuron over T = {conversion['timesteps']}; energy of the whole network {energy}"
    )


def ledger(
    model: PreTrainedModel,
    batch: Mapping[str, Any] | torch.Tensor,
    *,
    decode: bool = False,
    neurobench: bool = False,
    energy_model: Path | str | None = None,
) -> Ledger:
    """Run ``model`` once on ``batch`` (keyword arguments, ``input_ids`` ``[B, S]`` …) and account for every operation.

    Counted from what PyTorch executed, not from shapes of layers; an operand is called spikes only where its rows were found to
    be sums of ternary spikes worth powers of two. Works for ANNs too, which have no spikes. ``decode``: also one decoding step,
    the last token of ``batch`` behind a cache of the others. ``neurobench``: also the metrics of that benchmark.
    ``energy_model``: a file to use instead of the built-in constants. Raises `FasError` for a file that is not one, and
    `DataError` for what is no batch of this model, or cannot be decoded.
    """
    model_from(model, "fas.ledger", nn.Module)
    models = energy_models(energy_model)
    refuse_quantized(model)
    follow(model)
    clock = _clock(model)
    refuse_offloaded(model, "fas.ledger")
    batch = batch_for(model, batch, "fas.ledger")
    if clock is not None:
        refuse_inside(clock, "the ledger")
        with clock.changing("fas.ledger"):
            return _ledger(model, batch, clock, decode, neurobench, models)
    return _ledger(model, batch, clock, decode, neurobench, models)


def _ledger(
    model: PreTrainedModel,
    batch: Mapping[str, Any],
    clock: Clock | None,
    decode: bool,
    neurobench: bool,
    models: EnergyModels,
) -> Ledger:
    bits = _bits(model, clock)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            inputs = dict(batch)
            synapses = SynapticOperations() if neurobench else None
            account, statement = _statement(model, inputs, clock, models, bits, synapses)
            statements = [statement]
            if decode:
                statements.append(_statement(model, _decoding(model, inputs), clock, models, bits)[1])
    finally:
        model.train(was_training)
    config = clock.config if clock is not None and clock.stage == "snn" else None
    keys = ("coverage", "coding", "schedule", "rows", "timesteps", "levels", "neurons_per_channel", "cache")
    conversion = {key: getattr(config, key) for key in keys} if config is not None else {}
    found = Ledger(type(model).__name__, statements[0], statements[1] if decode else None, conversion)
    found.parts = by_part(parts_of(model), account, statement.sites)
    if synapses is not None:
        found.neurobench = metrics(model, synapses, account.sites.values(), _samples(inputs))
    return found


def refuse_quantized(model: nn.Module) -> None:
    """Raise `FasError` for weights whose products PyTorch does not run as such: they would not be counted."""
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear | Conv1D)
        why = obstacle(module) if linear and "weight" in module._parameters else None
        if why is not None:
            raise FasError(
                f"{name} is a {type(module).__module__}.{type(module).__name__}, and {why}, so its products could not be "
                "counted; take the ledger of the model before its weights are quantized"
            )


def _samples(inputs: Mapping[str, Any]) -> int:
    return next(len(value) for value in inputs.values() if isinstance(value, torch.Tensor))


def _clock(model: nn.Module) -> Clock | None:
    return clock_of(model) if sites_of(model) else None


def _bits(model: nn.Module, clock: Clock | None) -> int:
    if clock is None:
        return 8
    signed = any(site.signed for site in sites_of(model).values())
    return bits_of(clock.config.levels, signed)


def _decoding(model: PreTrainedModel, batch: dict[str, Any]) -> dict[str, Any]:
    """Arguments of one decoding step: the cache of all tokens but the last, and the last."""
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    tokens = batch.get(name)
    if not model.can_generate() or tokens is None or tokens.shape[-1] < 2:
        raise DataError(f"one decoding step needs a generative model and {name} of at least two tokens")
    cached = model(**(batch | {name: tokens[:, :-1], "use_cache": True} | _shorter(batch, tokens)))
    step = {name: tokens[:, -1:], "past_key_values": cached["past_key_values"], "use_cache": True}
    kept = {key: value for key, value in batch.items() if key in ("attention_mask", "encoder_outputs")}
    if model.config.is_encoder_decoder:
        from transformers.modeling_outputs import BaseModelOutput

        kept["encoder_outputs"] = BaseModelOutput(last_hidden_state=cached["encoder_last_hidden_state"])
    return kept | step


def _shorter(batch: dict[str, Any], tokens: torch.Tensor) -> dict[str, Any]:
    return {
        key: value[:, :-1]
        for key, value in batch.items()
        if key in ("attention_mask", "token_type_ids", "position_ids") and value.shape == tokens.shape
    }


def _statement(
    model: PreTrainedModel, inputs: dict[str, Any], clock: Clock | None, models: Any, bits: int,
    synapses: SynapticOperations | None = None,
) -> tuple[Account, Statement]:  # fmt: skip
    account = Account()
    if clock is None or clock.stage != "snn":
        with watching(model, clock, account, synapses):
            model(**inputs)
        return account, _compose(account, {}, None, inputs, models, bits)
    with counting(model) as spikes, watching(model, clock, account, synapses) as encodings:
        model(**inputs)
    return account, _compose(account, encodings.by_channel, spikes, inputs, models, bits)


def _compose(
    account: Account, by_channel: dict[str, Any], spikes: SpikeCount | None, inputs: dict[str, Any],
    models: Any, bits: int,
) -> Statement:  # fmt: skip
    entries = _sites(account, by_channel, spikes)
    steps = max((len(entry.by_timestep) for entry in entries), default=1)
    per_neuron = spikes.per_neuron if spikes is not None else 0.0
    notes = list(account.notes)
    if account.unknown:
        notes.append(f"operations in no table, not charged: {', '.join(sorted(account.unknown))}")
    return Statement(
        tokens=_tokens(inputs),
        macs=account.macs + round(sum(tally.ann.macs for tally in account.tallies.values())),
        macs_replaced=account.macs_replaced,
        macs_analog_executed=sum(product.macs * product.times for product in account.analog)
        + round(sum(tally.snn.macs for tally in account.tallies.values())),
        functions=round(ann_work(account).functions),
        functions_analog=round(snn_work(account).functions),
        accumulates=account.accumulates,
        shifts=sum(product.shifts for product in account.spiking),
        updates=round(sum(site.updates for site in account.sites.values())),
        spikes=round(sum(site.spikes for site in account.sites.values())),
        spikes_per_neuron=per_neuron,
        sites=entries,
        products=[
            ProductEntry(p.module, p.kind, p.macs, p.times, p.accumulates, p.shifts, [entry.site for entry in p.events])
            for p in account.products
        ],
        operations=[OperationEntry(t.module, t.kind, t.elements, t.times, t.sites) for t in account.tallies.values()],
        energy=energy_table(account, models, bits, per_neuron / steps),
        overhead=account.overhead,
        unknown=account.unknown,
        notes=notes,
    )


def _sites(account: Account, by_channel: dict[str, Any], spikes: SpikeCount | None) -> list[SiteEntry]:
    if spikes is None:
        return []
    macs: dict[str, int] = {}
    accumulates: dict[str, float] = {}
    for product in account.spiking:
        for entry in product.events:
            macs[entry.site] = macs.get(entry.site, 0) + product.macs
            accumulates[entry.site] = accumulates.get(entry.site, 0) + sum(entry.by_timestep) * entry.fan_out
    found = []
    for name, tally in account.sites.items():
        count, channels = spikes.sites[name], by_channel[name]
        by_timestep = [float(step) / max(1, count.neurons) for step in count.by_timestep]
        readout = tally.spikes * tally.readouts
        found.append(
            SiteEntry(
                name,
                tally.kind,
                count.neurons,
                count.per_neuron,
                by_timestep,
                count.per_neuron / len(by_timestep),
                len(channels),
                silent(channels),
                round(tally.updates),
                macs.get(name, 0),
                round(accumulates.get(name, 0) + readout),
            )
        )
    return found


def _tokens(inputs: Mapping[str, Any]) -> int:
    for name in ("input_ids", "decoder_input_ids", "inputs_embeds", "pixel_values"):
        if (value := inputs.get(name)) is not None:
            return int(value.shape[0] * (value.shape[1] if name != "pixel_values" else 1))
    return 0


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
