"""What a compared model takes beside its quality: energy in every ledger, what of it stays analog, and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fas.accounting import ledger
from fas.accounting.ledger import Statement
from fas.config import SpikingConfig
from fas.runtime.alive import traced
from fas.runtime.control import at_time, without_cache


def priced(model: PreTrainedModel, config: SpikingConfig, batch: Mapping[str, Tensor], spent: float) -> dict[str, Any]:
    """Fields of a `Row` for a spiking model: one batch under the ledger, and one whose tensors are followed.

    ``spent``: how often the timesteps run for an answer (`Method.spent`); it multiplies what the ledger saw once.
    """
    with at_time(model, **config.model_dump()):
        statement, memory = ledger(model, batch).forward, peak_memory(model, batch)
    return _energies(statement, "snn_strict", spent) | {
        "analog": {"macs": 1 - statement.share, "functions": spent * _functions(statement)},
        "memory_mib": memory,
    }


def priced_as_integers(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The same of the quantized network that a layerwise ``model`` is an equal of: integer products, once."""
    return _energies(ledger(model, batch).forward, "quantized", 1)


@torch.no_grad()
def peak_memory(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> float:
    """MiB of weights, and of all that is alive at once in a forward of ``batch``."""
    stored = sum(value.nbytes for value in [*model.parameters(), *model.buffers()])
    return round((stored + traced(lambda: model(**batch, **without_cache(model))).peak) / 2**20, 2)


def _energies(statement: Statement, row: str, spent: float) -> dict[str, Any]:
    energy, proxy = statement.energy, statement.energy.columns[0]
    against = {entry.column: entry.against for entry in energy.break_even}
    return {
        "energy_strict_pj": spent * energy.picojoules[row][proxy] / statement.tokens,
        "energy_ann_pj": energy.picojoules["ann_fp32"][proxy] / statement.tokens,
        "energies": {
            column: spent * energy.picojoules[row][column] / energy.picojoules[against[column]][column]
            for column in energy.columns
        },
    }


def _functions(statement: Statement) -> float:
    """Exponentials, roots and divisions that the spiking network still evaluates, over all T, for one of the ANN's."""
    return statement.functions_analog / statement.functions if statement.functions else 0.0
