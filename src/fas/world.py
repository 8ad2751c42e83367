"""The processes that work together under ``torchrun``. Where there is one, all of this does nothing.

What is written, printed or decided once is the first process's (`once`); sums go over all of them (`summed`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R")

_PATIENCE = timedelta(days=7)
"""How long others wait for the first one's Stage 2; torchrun ends them if a process fails, so nothing hangs for it."""


def launched() -> tuple[int, int]:
    """Rank and number of processes as the launcher says, also before they are joined: (0, 1) without one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")), size) if size > 1 else (0, 1)


def local_rank() -> int:
    """Which of its machine's processes this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def join(device: str) -> None:
    """Connect the processes of the launcher, if there are several and they are not: by gloo, and between GPUs
    (``device`` "cuda") by NCCL."""
    if launched()[1] == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)


def leave() -> None:
    """Disconnect, when all is done."""
    if launched()[1] > 1 and size() > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def size() -> int:
    """How many processes are joined."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    import torch.distributed as dist

    return dist.get_rank() if size() > 1 else 0


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return rank() == 0


def once(work: Callable[[], R]) -> R:
    """What the first process makes of ``work``, for all; the others wait. If it raises there, the launcher ends the others."""
    if size() == 1:
        return work()
    import torch.distributed as dist

    found = [work() if is_first() else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]


def gathered(value: R) -> list[R]:
    """Every process's ``value``, in their order, for all."""
    if size() == 1:
        return [value]
    import torch.distributed as dist

    found: list[R] = [value] * size()
    dist.all_gather_object(found, value)
    return found


def summed(values: Tensor) -> Tensor:
    """The sum of every process's ``values``, the same bits for all."""
    if size() == 1:
        return values
    import torch.distributed as dist

    # a group of NCCL alone, which a user may have made, cannot see memory of the CPU
    found = values.detach().clone()
    found = found.cuda() if dist.get_backend() == "nccl" else found
    dist.all_reduce(found)
    return found.to(values.device)


def same_as_first(tensors: Sequence[Tensor]) -> None:
    """Give ``tensors`` in place the first process's values."""
    values = once(lambda: [tensor.detach().cpu() for tensor in tensors])
    for tensor, value in zip(tensors, values, strict=True):
        tensor.data.copy_(value)


def share(count: int) -> slice:
    """Which of ``count`` things in a row are this process's: as many as the others', or one more."""
    each, more = divmod(count, size())
    start = rank() * each + min(rank(), more)
    return slice(start, start + each + (rank() < more))


def first_to_fail() -> bool:
    """Whether no other process of the launcher has failed before, so that one sentence is printed, not one a process.

    The others' errors are mostly that they lost this one. Without torchrun's store every process counts as the first.
    """
    if launched()[1] == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore

    place, attempt = os.environ["MASTER_ADDR"], os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = TCPStore(place, int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=10))
        return store.add(f"fas/failed/{attempt}", 1) == 1
    except RuntimeError:  # the launcher has gone
        return True
