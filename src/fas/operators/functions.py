"""The functions that softmax and norms are made of: the groups behind them, and the functions on their whole range.

``fitting`` of a group is the ``penalty`` and ``evenness`` of `fit_group`.
"""

from __future__ import annotations

from torch import Tensor

from fas.operators.fit import fit_group
from fas.operators.group import Evaluation, Group
from fas.operators.ranges import evaluate, reduce_exp2, reduce_reciprocal, reduce_rsqrt
from fas.operators.regions import operator


def exp2_group(neurons: int = 4, **fitting: float) -> Group:
    """Of `exp2_negative`: readouts 2^{−g} and 2^{−(1−g)} on [0, 1]. Few neurons, for it runs for every attention score."""
    return fit_group([lambda g: (-g).exp2(), lambda g: (g - 1).exp2()], 0, 1, neurons, **fitting)


def reciprocal_group(neurons: int = 8, **fitting: float) -> Group:
    """Of `reciprocal`: readouts 1/g and 1/(3−g) on [1, 2]."""
    return fit_group([lambda g: 1 / g, lambda g: 1 / (3 - g)], 1, 2, neurons, **fitting)


def rsqrt_group(neurons: int = 8, **fitting: float) -> Group:
    """Of `rsqrt`: readouts 1/√g and 1/√(5−g) on [1, 4]."""
    return fit_group([lambda g: g.rsqrt(), lambda g: (5 - g).rsqrt()], 1, 4, neurons, **fitting)


@operator
def exp2_negative(u: Tensor, group: Evaluation) -> Tensor:
    """2^{−u} of ``u`` ≥ 0 (any shape; below 0 counts as 0), in fp32 or wider; 0 from u = 32 on."""
    return evaluate(reduce_exp2(u), group)


@operator
def reciprocal(s: Tensor, group: Evaluation) -> Tensor:
    """1/s of ``s`` > 0 (any shape), in fp32 or wider; s ≤ 0 counts as the smallest normal number, so nothing is infinite."""
    return evaluate(reduce_reciprocal(s), group)


@operator
def rsqrt(v: Tensor, group: Evaluation) -> Tensor:
    """1/√v of ``v`` > 0 (any shape), in fp32 or wider; v ≤ 0 counts as the smallest normal number, so nothing is infinite."""
    return evaluate(reduce_rsqrt(v), group)
