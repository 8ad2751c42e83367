"""Keys or values of T·B rows of which those of past tokens are the same at every timestep (the settled cache)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class HeldStill(Tensor):
    """A tensor ``[T·B, H, S + n, D]`` that is not laid out: ``past`` ``[B, H, S, D]`` for all T timesteps, ``fresh``
    ``[T·B, H, n, D]`` behind it.

    Attention that knows it reads the past where it lies (`fas.neurons.native.decoding.attend`); any other operation lays it out
    and sees an ordinary tensor. It has no gradient.
    """

    past: Tensor
    fresh: Tensor

    @staticmethod
    def __new__(cls, past: Tensor, fresh: Tensor) -> HeldStill:
        shape = (fresh.shape[0], past.shape[1], past.shape[2] + fresh.shape[2], past.shape[3])
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=past.dtype, device=past.device)  # type: ignore[attr-defined]
        made.past, made.fresh = past, fresh
        return made  # type: ignore[no-any-return]

    def laid_out(self) -> Tensor:
        """The ordinary tensor."""
        past = self.past.repeat(self.fresh.shape[0] // self.past.shape[0], 1, 1, 1)
        return torch.cat([past, self.fresh], dim=-2) if self.fresh.shape[2] else past

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(HeldStill, HeldStill.laid_out, (args, kwargs or {}))
        return func(*args, **kwargs)


def held_still(past: Tensor, fresh: Tensor, in_place: bool) -> Tensor:
    """``past`` for all timesteps and ``fresh`` behind it; ``in_place``: not laid out where no gradient is wanted."""
    made = HeldStill(past, fresh)
    return made if in_place and not torch.is_grad_enabled() else made.laid_out()
