"""Turns dispatched operations into entries of an `Account`, with what is known of where their operands come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fas.accounting.account import Account, Events, Product
from fas.accounting.neurobench import SynapticOperations
from fas.accounting.operations import Rule
from fas.accounting.provenance import Origin, Provenance
from fas.accounting.work import Work
from fas.neurons import Clock

_SQUARES = ("square", "pow")


def tensors_in(values: Any) -> Iterable[Tensor]:
    """All tensors among ``values``, through lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


class Counter:
    """Counts operation after operation. ``provenance`` is shared with what sees the encodings."""

    def __init__(self, model: nn.Module, clock: Clock | None, account: Account) -> None:
        self.clock, self.account = clock, account
        self.provenance = Provenance()
        self.synapses: SynapticOperations | None = None
        lasting = [*model.parameters(), *model.buffers()]
        self.lasting = {tensor.untyped_storage()._cdata for tensor in lasting}

    @property
    def timesteps(self) -> int:
        """How many rows of each value a folded segment carries."""
        return self.clock.config.timesteps if self.clock is not None and self.clock.folds else 1

    def count(
        self, func: Any, rule: Rule, name: str, role: str, args: Any, kwargs: Any, out: Any, inside: bool
    ) -> None:
        """Count one operation that ran in the frame ``name`` and ``role``, ``inside`` a folded segment or not."""
        given = [*tensors_in(args), *tensors_in(kwargs.values())]
        origins = [self.provenance.of(tensor) for tensor in given]
        timed = inside and any(origin.timed for origin in origins)
        results = list(tensors_in([out]))
        self._remember(func, rule, given, origins, timed, results)
        if role == "overhead":
            moved = sum(result.numel() for result in results)
            if moved and rule.role != "free":
                self.account.overhead[name] = self.account.overhead.get(name, 0) + moved
            return
        if role == "rotation":
            self._rotation(rule, name, given, results, timed)
        elif rule.role == "product":
            self._product(rule, name, args, results[0], timed)
        elif rule.role in ("pointwise", "reduction", "lookup", "fused_attention"):
            self._other(func, rule, name, role, args, given, origins, results, timed)
        elif rule.role == "unknown":
            label = str(func._schema.name)
            self.account.unknown[label] = self.account.unknown.get(label, 0) + 1

    def _remember(
        self, func: Any, rule: Rule, given: list[Tensor], origins: list[Origin], timed: bool, results: list[Tensor]
    ) -> None:
        """What is now known of the results: copies of one encoding are that encoding; all else is at most timed."""
        emission = None
        if rule.role == "copy" and origins:
            first = origins[0].emission
            if first is not None and all(origin.emission is first for origin in origins):
                emission = first
        # a weight that is computed anew in each forward (normed, or from whole numbers) is one all the same
        constant = bool(given) and all(self.is_constant(tensor) for tensor in given)
        for result in results:
            known = self.provenance.of(result)
            if emission is not None or timed or constant or known.emission is not None or known.constant:
                self.provenance.put(result, Origin(timed, emission, constant))

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether it is a parameter or buffer (or a copy): the same at every timestep."""
        return tensor.untyped_storage()._cdata in self.lasting or self.provenance.of(tensor).constant

    def _events(self, tensor: Tensor, timed: bool, fan_out: int) -> Events | None:
        emission = self.provenance.of(tensor).emission
        if emission is None:
            return None
        copies = tensor.numel() / (self.timesteps if timed else 1) / emission.elements
        by_timestep = [count * copies for count in emission.by_timestep]
        return Events(emission.site, by_timestep, fan_out, emission.shifted * copies, emission.constant)

    def _product(self, rule: Rule, name: str, args: Any, out: Tensor, timed: bool) -> None:
        times = self.timesteps if timed else 1
        operands = [value for value in args if isinstance(value, Tensor)]
        if rule.kind == "conv":
            macs_each = math.prod(operands[1].shape[1:])
            product = Product(name, "conv", 1, out.numel() // out.shape[1] // times, macs_each, out.shape[1], times)
            product.bias, product.bias_times = len(operands) > 2, times
            self.account.products.append(product)
            return
        bias = len(operands) > 2
        left, right = operands[-2:]
        batches = left.shape[0] if left.ndim == 3 else 1
        m, k, n = left.shape[-2], left.shape[-1], right.shape[-1]
        if batches > 1:
            batches //= times
        else:
            m //= times
        weighted = self.is_constant(right) or self.is_constant(left)
        product = Product(name, "linear" if weighted else "attention", batches, m, k, n, times, weighted, bias, times)
        if weighted:
            side, fan_out = (left, n) if self.is_constant(right) else (right, m)
            product.events = [entry for entry in [self._events(side, timed, fan_out)] if entry is not None]
        else:
            both = [self._events(left, timed, n), self._events(right, timed, m)]
            # an operand that is analog moves at every timestep: such a product stays one
            product.events = [entry for entry in both if entry is not None] if None not in both else []
        if self.synapses is not None and self.is_constant(right) and left.ndim == 2:
            self._synapses(self.synapses, left, right, timed)
        if product.events:
            self._as_events(product)
        self.account.products.append(product)

    def _synapses(self, synapses: SynapticOperations, left: Tensor, right: Tensor, timed: bool) -> None:
        emission = self.provenance.of(left).emission
        each = 0 if emission is None else left.numel() / (self.timesteps if timed else 1) / emission.elements
        steps = 1 if timed or emission is None else len(emission.by_timestep)  # layerwise: one row stands for all
        synapses.add(left, right, emission, each, steps)

    def _as_events(self, product: Product) -> None:
        assert self.clock is not None
        config = self.clock.config
        if not product.weighted and self.clock.folds and config.coding == "rate" and config.rows == "step":
            first, second = product.events  # the product of two single spikes: one gates the other
            product.events = [first, replace(second, fan_out=0)]
        product.resident = not self.clock.folds
        if config.coding == "sigma_delta" or not self.clock.folds:
            product.bias_times = 1  # enters once

    def _rotation(self, rule: Rule, name: str, given: list[Tensor], results: list[Tensor], timed: bool) -> None:
        if rule.role != "product":
            return
        times, stages = self.timesteps if timed else 1, math.log2(given[1].shape[-1])
        tally = self.account.tally(name, "rotation")
        tally.times = max(tally.times, times)
        tally.elements += results[0].numel() / times
        tally.snn += Work(adds=results[0].numel() * stages, activation_words=2 * results[0].numel())

    def _other(
        self, func: Any, rule: Rule, name: str, role: str, args: Any, given: list[Tensor],
        origins: Sequence[Origin], results: list[Tensor], timed: bool,
    ) -> None:  # fmt: skip
        if not results or not any(tensor.is_floating_point() for tensor in [*given, results[0]]):
            return  # positions and masks: bookkeeping
        times = self.timesteps if timed else 1
        elements = given[0].numel() if rule.role == "reduction" else results[0].numel()
        work = self._work(func, rule, args, given, results[0], elements)
        spiking = self._incremental(func, rule, given, origins, elements, timed)
        sites = [entry.site for entry in spiking]
        tally = self.account.tally(name, rule.kind, sites)
        tally.times = max(tally.times, times)
        if role != "replacement":
            tally.elements += elements / times
            tally.ann += work.times(1 / times)
        if role == "dropped":
            return
        if spiking:
            counts = sum(sum(entry.by_timestep) for entry in spiking)
            tally.snn += Work(acs=counts, shifts=sum(entry.shifted for entry in spiking), events=counts)
        else:
            tally.snn += work

    def _work(self, func: Any, rule: Rule, args: Any, given: list[Tensor], out: Tensor, elements: int) -> Work:
        if rule.role == "lookup":
            return Work(weight_words=elements, activation_words=elements)
        if rule.role == "fused_attention":
            query, key, value = given[:3]
            scores = math.prod(query.shape[:-1]) * key.shape[-2]
            macs = scores * (query.shape[-1] + value.shape[-1])
            words = query.numel() + key.numel() + value.numel() + out.numel()
            return Work(macs=macs, adds=3 * scores, muls=2 * scores, functions=scores, activation_words=words)
        add, mul, function = rule.add, rule.mul, rule.function
        operation = func._schema.name.removeprefix("aten::").rstrip("_")
        by_number = len(args) > 1 and not (isinstance(args[1], Tensor) and args[1].ndim > 0)
        if function and by_number and (operation == "div" or (operation == "pow" and args[1] in (2, 3))):
            mul, function = (2 if operation == "pow" and args[1] == 3 else 1), 0
        words = elements + (out.numel() if rule.role == "reduction" else elements)
        return Work(adds=add * elements, muls=mul * elements, functions=function * elements, activation_words=words)

    def _incremental(
        self, func: Any, rule: Rule, given: list[Tensor], origins: Sequence[Origin], elements: int, timed: bool
    ) -> list[Events]:
        """Sums, squares and products of spikes, which follow them one by one."""
        operation = func._schema.name.removeprefix("aten::").rstrip("_")
        emissions = [origin.emission for origin in origins]
        if not emissions or any(emission is None for emission in emissions):
            return []
        product = operation == "mul" and len(given) == 2 and given[0].shape == given[1].shape
        if not (product or operation in ("sum", "mean", *_SQUARES)):
            return []
        if product and emissions[0] is emissions[1]:
            given = given[:1]
        found = [self._events(tensor, timed, 1) for tensor in given]
        return [entry for entry in found if entry is not None]
