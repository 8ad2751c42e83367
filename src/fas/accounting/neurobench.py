"""NeuroBench's metrics by its definitions (Yik et al., "The NeuroBench framework", 2025; package `neurobench` 2.3).

Synaptic operations are those of layers with weights, without biases, in everything that ran over all timesteps: ``dense`` of
all connections, ``effective_macs`` (real-valued input) and ``effective_acs`` (spikes) of those where input and weight are
not zero. Per sample, which is a row of the batch. Attention products have no weights and are not in them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fas.accounting.account import SiteTally
from fas.accounting.emission import Emission

_CONNECTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)


class SynapticOperations:
    """Sums over products of an input ``[M, K]`` with a weight ``[K, N]``."""

    def __init__(self) -> None:
        self.dense = self.effective_macs = self.effective_acs = 0.0

    def add(self, rows: Tensor, weight: Tensor, emission: Emission | None, copies: float, steps: int) -> None:
        """One product; of spikes (``emission``, each in ``copies``) a train of ``steps`` was multiplied."""
        connected = (weight != 0).sum(1).double()  # [K]
        if emission is not None:
            assert emission.by_channel is not None
            fired = emission.by_channel.to(weight.device).double() * copies
            self.effective_acs += float(fired @ connected)
            self.dense += weight.numel() * rows.shape[0] * steps
            return
        self.effective_macs += float((rows != 0).sum(0).double() @ connected)
        self.dense += weight.numel() * rows.shape[0]


def metrics(
    model: nn.Module, operations: SynapticOperations, sites: Iterable[SiteTally], samples: int
) -> dict[str, float]:
    """All metrics of a run of ``samples`` rows: operations per sample, footprint in bytes, shares of zeros."""
    sites = list(sites)
    updates = sum(site.updates for site in sites)
    spikes = sum(site.spikes for site in sites)
    weights = [module.weight for module in model.modules() if isinstance(module, _CONNECTIONS)]
    zeros = sum(int(torch.count_nonzero(weight == 0)) for weight in weights)  # type: ignore[arg-type]
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "footprint_bytes": float(sum(tensor.numel() * tensor.element_size() for tensor in tensors)),
        "connection_sparsity": zeros / max(1, sum(weight.numel() for weight in weights)),  # type: ignore[misc]
        "activation_sparsity": 1 - spikes / updates if updates else 0.0,
        "dense_synaptic_operations": operations.dense / samples,
        "effective_macs": operations.effective_macs / samples,
        "effective_acs": operations.effective_acs / samples,
    }
