"""The surrogate gradient of the ternary spike.

Forward (exact): s(v) = +1 if v ≥ 1, −1 if v < 0 (signed neurons only), else 0, with v in units of the threshold.
Backward: a triangle of half-width 1 around each firing boundary, ds/dv ≈ max(0, 1−|v−1|) + max(0, 1−|v|).
"""

from __future__ import annotations

from torch import Tensor


def ternary_slope(v: Tensor, signed: bool) -> Tensor:
    """ds/dv at potentials ``v`` (any shape, units of θ); the second triangle for ``signed`` neurons only."""
    slope = (1 - (v - 1).abs()).clamp_(min=0)
    return slope.add_((1 - v.abs()).clamp_(min=0)) if signed else slope
