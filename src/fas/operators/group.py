"""A group: a few neurons over one scalar that together compute nonlinear functions of it (UGO; STA, ICLR 2024).

Over g in [low, high], cut into N segments at corners c_i of widths w_i, neuron i receives the charge g − c_i and has the
threshold λ_i = w_i. A neuron saturates at its threshold, so it holds h_i = clip(g − c_i, 0, w_i) as closely as its spikes can,
and readout r is a linear layer on the spikes:

    f_r(g) ≈ b_r + Σ_i w2_ri·h_i          (continuous, piecewise linear: w2_ri is the slope of segment i)

The neurons below g are saturated and those above are silent, which spikes express without error; with L levels only the one
neuron whose segment holds g rounds, by at most w_i/(2L) once it has settled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Evaluation = Callable[[Tensor], Tensor]
"""What evaluates a group: arguments ``[…]`` to readouts ``[…, R]``; a `Group` does so exactly, a `SpikingGroup` by spikes."""


def wide(x: Tensor) -> Tensor:
    """``x`` in fp32 or wider: the arithmetic of all operators."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def charges(argument: Tensor, corners: Tensor, widths: Tensor) -> Tensor:
    """What each neuron holds of ``argument`` ``[…]``: clip(g − c_i, 0, w_i), ``[…, N]``, in the argument's dtype."""
    held = argument.unsqueeze(-1) - corners.to(argument)
    return held.clamp(held.new_zeros(()), widths.to(argument))


def read(values: Tensor, readout: Tensor, offset: Tensor) -> Tensor:
    """The readouts ``[…, R]`` of neuron values ``[…, N]``: b_r + Σ_i w2_ri·h_i."""
    return values @ readout.to(values).mT + offset.to(values)


@dataclass(frozen=True, eq=False)
class Group:
    """A fitted group, fp64. Calling it evaluates it exactly: neurons that saturate but do not round.

    ``corners``, ``widths`` ``[N]`` (unit of the argument), ``readout`` w2 ``[R, N]`` (unit of f per unit of the argument),
    ``offset`` b ``[R]`` (unit of f).
    """

    corners: Tensor
    widths: Tensor
    readout: Tensor
    offset: Tensor

    def __call__(self, argument: Tensor) -> Tensor:
        """Readouts ``[…, R]`` of ``argument`` ``[…]``, in fp32 or wider."""
        return read(charges(wide(argument), self.corners, self.widths), self.readout, self.offset)

    @property
    def neurons(self) -> int:
        """N."""
        return len(self.corners)

    @property
    def rises(self) -> Tensor:
        """w2_ri·w_i ``[R, N]``: how far the readout moves across each segment."""
        return self.readout * self.widths

    def rounding_bounds(self, levels: int) -> tuple[Tensor, Tensor]:
        """The most that neurons of L = ``levels`` can add, per readout ``[R]``: (settled, any).

        Settled: one neuron rounds, max_i |w2_ri|·w_i/(2L). Any: each may be half a level off, ‖w2_r·w‖₁/(2L), which is
        STA's bound.
        """
        rises = self.rises.abs() / (2 * levels)
        return rises.amax(-1), rises.sum(-1)
