"""The ledger's NeuroBench metrics against the package `neurobench`, in an environment of its own (`make test-neurobench`).

NeuroBench hooks the layers of the event executor, which read real spikes; the ledger counts the folded run.
"""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import fas
from fas.runtime.events import EventExecutor

pytest.importorskip("neurobench", reason="neurobench has an environment of its own: make test-neurobench")

from neurobench.metrics.static import ConnectionSparsity, Footprint
from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
from neurobench.models import TorchModel

BATCH = 2


class Net(nn.Module):
    """What NeuroBench runs: a model that takes tokens."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, tokens: Tensor) -> Any:
        with torch.no_grad():
            return self.body(input_ids=tokens, use_cache=False)["logits"]


def measured(body: nn.Module, tokens: Tensor) -> dict[str, float]:
    """NeuroBench's own figures of one batch."""
    model = TorchModel(Net(body))
    operations = SynapticOperations()
    model.register_hooks()
    logits = model(tokens)
    found = operations(model, logits, (tokens, tokens))
    model.cleanup_hooks()
    return {
        "dense_synaptic_operations": float(found["Dense"]),
        "effective_macs": float(found["Effective_MACs"]),
        "effective_acs": float(found["Effective_ACs"]),
        "footprint_bytes": float(Footprint()(model)),
        "connection_sparsity": float(ConnectionSparsity()(model)),
    }


class Replay(nn.Module):
    """The linear layers of a model without its hooks, which NeuroBench would copy; they are handed what those were handed."""

    def __init__(self, model: nn.Module, run: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.given: list[tuple[int, Tensor]] = []
        handles = []
        for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=layer.weight.dtype)
            plain.weight = layer.weight
            # behind the hooks that put spikes in the place of values
            handles.append(layer.register_forward_hook(self._keep(len(self.layers)), prepend=True))
            self.layers.append(plain)
        run()
        for handle in handles:
            handle.remove()

    def _keep(self, index: int) -> Any:
        return lambda layer, args, out: self.given.append((index, args[0].clone())) or None

    def forward(self, input_ids: Tensor, use_cache: bool) -> dict[str, Tensor]:
        outputs = [self.layers[index](given) for index, given in self.given]
        return {"logits": outputs[-1]}


def pruned(seed: int = 0) -> nn.Module:
    """A LLaMA with a quarter of its weights at zero."""
    model = tiny.ann("llama", seed)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight[torch.rand(module.weight.shape, generator=generator) < 0.25] = 0
    return model


def test_ann() -> None:
    model, tokens = pruned(), tiny.tokens(BATCH, 6)
    ours = fas.ledger(model, {"input_ids": tokens}, neurobench=True).neurobench
    assert ours is not None
    for name, value in measured(model, tokens).items():
        assert ours[name] == pytest.approx(value, abs=1e-4, rel=1e-6), name
    assert ours["effective_acs"] == 0
    assert ours["connection_sparsity"] == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("coverage", ["ffn", "linear"])
@pytest.mark.parametrize("coding", ["sigma_delta", "rate"])
def test_snn(coverage: str, coding: str) -> None:
    tokens = tiny.tokens(BATCH, 6)
    # without rotation, which would fill the zeros of the weights
    config = fas.SpikingConfig(coverage=coverage, levels=4, timesteps=4, coding=coding, rotation="none")
    model = fas.convert(fas.prepare(pruned(), config, [{"input_ids": tokens}])).double()
    executor = EventExecutor(model)
    replay = Replay(executor.model, lambda: executor(input_ids=tokens))
    spikes = executor(input_ids=tokens).spikes
    ours = fas.ledger(model, {"input_ids": tokens}, neurobench=True).neurobench
    assert ours is not None
    theirs = measured(replay, tokens)
    for name in ("dense_synaptic_operations", "effective_macs", "effective_acs", "connection_sparsity"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4, rel=1e-6), name
    assert ours["effective_acs"] > 0

    class Emitting(nn.Module):
        """The neurons as activation layers, so that NeuroBench sees their trains."""

        def __init__(self) -> None:
            super().__init__()
            self.sites = nn.ModuleList(nn.ReLU() for _ in spikes)

        def forward(self, _: Tensor) -> Tensor:
            return torch.stack(
                [site(train.abs()).sum() for site, train in zip(self.sites, spikes.values(), strict=True)]
            )

    emitting = TorchModel(Emitting())
    emitting.register_hooks()
    emitting(tokens)
    sparsity = ActivationSparsity()(emitting, None, (tokens, tokens))
    assert ours["activation_sparsity"] == pytest.approx(sparsity, abs=1e-9)
