"""Full-parameter training of a model whose gradients and optimizer states no single GPU holds: FSDP2, block by block."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from fas.models import find_segments


def fsdp_arguments(model: nn.Module) -> dict[str, Any]:
    """What transformers is told: each repeated layer of ``model`` is a unit, with the sites that it holds."""
    blocks = sorted({segment.family.block for segment in find_segments(model) if segment.family.block})
    config = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": blocks}
    return {"fsdp": True, "fsdp_config": config}


def shard_on_cpus(accelerator: Accelerator, settings: dict[str, Any] | None) -> None:
    """What accelerate does itself where there are GPUs: know that FSDP is asked for."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**(settings or {}))
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState().distributed_type = DistributedType.FSDP


@contextmanager
def sharded_copy(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Yields what is to be sharded and trained; ``model``, which waits in the CPU's memory, has its weights afterwards."""
    device = model.device
    twin = copy.deepcopy(model.cpu())
    yield twin
    trained = dict(twin.named_parameters()) | dict(twin.named_buffers())
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            value.copy_(_whole(trained[name]))
    model.to(device)  # type: ignore[arg-type]


def _whole(value: Tensor) -> Tensor:
    """All of a tensor of which each process holds a part; every process must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value
