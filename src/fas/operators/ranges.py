"""Range reduction: an argument of any size becomes one in a single octave, a choice of readout, and a shift.

A running value that crosses an octave must not make the neurons of a group jump from one end of the range to the other,
because they track with limited slew. So the reduced argument is folded like a triangle wave (every odd octave runs
backwards, as in a Gray code): it is continuous in the argument, and a second readout of the same neurons serves the odd
octaves. Only comparisons, exponents and shifts are used, no product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fas.operators.group import Evaluation, wide

LAST_OCTAVE = 32
"""2^{−u} is 0 from here on (even, so that the folded argument is 0 there: what counts for nothing gives no spike)."""


class Reduced(NamedTuple):
    """What the group is asked (``argument``), whether its ``odd`` readout applies, and ``scale``, the shift after it."""

    argument: Tensor
    odd: Tensor
    scale: Tensor


def reduce_exp2(u: Tensor) -> Reduced:
    """Of 2^{−u}, u ≥ 0: g in [0, 1]; readouts 2^{−g} and 2^{−(1−g)}; 2^{−u} = 2^{−k}·2^{−f}, k = floor(u), f = u − k.

    Below 0 counts as 0; from `LAST_OCTAVE` on, infinity included, the scale is 0.
    """
    u = wide(u).clamp(0, LAST_OCTAVE)
    octave = u.floor()
    odd = octave.remainder(2) == 1
    part = u - octave
    scale = torch.where(octave < LAST_OCTAVE, (-octave).exp2(), 0)
    return Reduced(torch.where(odd, 1 - part, part), odd, scale)


def reduce_reciprocal(s: Tensor) -> Reduced:
    """Of 1/s, s > 0: s = m·2^e, m in [1, 2); g = m or 3 − m in [1, 2]; readouts 1/g and 1/(3−g), times 2^{−e}.

    Values outside the normal positive range of the dtype (0 among them) count as its nearest end: the result is finite.
    """
    mantissa, exponent = torch.frexp(_normal(s))
    octave = exponent - 1
    odd = octave.remainder(2) == 1
    m = 2 * mantissa
    return Reduced(torch.where(odd, 3 - m, m), odd, (-octave.to(m.dtype)).exp2())


def reduce_rsqrt(v: Tensor) -> Reduced:
    """Of 1/√v, v > 0: v = m·4^e, m in [1, 4); g = m or 5 − m in [1, 4]; readouts 1/√g and 1/√(5−g), times 2^{−e}.

    Values outside the normal positive range of the dtype (0 among them) count as its nearest end: the result is finite.
    """
    mantissa, exponent = torch.frexp(_normal(v))
    octave = torch.div(exponent - 1, 2, rounding_mode="floor")
    odd = octave.remainder(2) == 1
    m = torch.where(exponent - 2 * octave == 1, 2 * mantissa, 4 * mantissa)
    return Reduced(torch.where(odd, 5 - m, m), odd, (-octave.to(m.dtype)).exp2())


def evaluate(reduced: Reduced, group: Evaluation) -> Tensor:
    """The function of the unreduced argument, from the two readouts of ``group``."""
    even, odd = group(reduced.argument).unbind(-1)
    return torch.where(reduced.odd, odd, even) * reduced.scale


def _normal(x: Tensor) -> Tensor:
    x = wide(x)
    limits = torch.finfo(x.dtype)
    return x.clamp(limits.tiny, limits.max)
