"""What each operation of PyTorch is worth: a table of data. An operation that is not in it is counted and named.

Costs are per element of what the operation gives (reductions: of what they read), in primitive operations: ``add`` (also
subtractions, comparisons and selections), ``mul``, ``function`` (one exponential, root, division …). Products of matrices are
counted by their shapes instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["matmul", "attention", "conv", "embedding", "norm", "softmax", "activation", "elementwise", "reduction"]
Role = Literal["product", "fused_attention", "lookup", "pointwise", "reduction", "copy", "free", "unknown"]


@dataclass(frozen=True)
class Rule:
    """How an operation is counted: its ``role``, its ``kind`` in the ledger, and primitive operations per element."""

    role: Role
    kind: Kind = "elementwise"
    add: float = 0
    mul: float = 0
    function: float = 0


FREE = Rule("free")
COPY = Rule("copy")
_ADD, _MUL = Rule("pointwise", add=1), Rule("pointwise", mul=1)
_FUNCTION = Rule("pointwise", function=1)

# a mean's one product a row is left out
_REDUCTION = Rule("reduction", "reduction", add=1)


def _rules(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_rules(Rule("product", "matmul"), "mm addmm bmm baddbmm"),
    **_rules(Rule("product", "conv"), "convolution _convolution mkldnn_convolution cudnn_convolution"),
    **_rules(
        Rule("fused_attention", "attention"),
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable",
    ),
    "embedding": Rule("lookup", "embedding"),
    # mean, variance, normalisation, weight and bias
    "native_layer_norm": Rule("pointwise", "norm", add=4, mul=3),
    "_fused_rms_norm": Rule("pointwise", "norm", add=1, mul=3),
    # maximum, difference, exponential, sum, share
    **_rules(Rule("pointwise", "softmax", add=3, mul=1, function=1), "_softmax _log_softmax _safe_softmax"),
    **_rules(Rule("pointwise", "activation", mul=1, function=1), "gelu silu"),
    **_rules(Rule("pointwise", "activation", function=1), "tanh sigmoid erf"),
    **_rules(Rule("pointwise", "activation", add=1), "relu threshold hardtanh"),
    **_rules(
        _ADD,
        "add sub rsub neg abs maximum minimum clamp clamp_min clamp_max where floor round ceil "
        "remainder sign masked_fill lt le gt ge eq ne logical_and logical_or logical_not",
    ),
    **_rules(_MUL, "mul square"),
    "addcmul": Rule("pointwise", add=1, mul=1),
    **_rules(_FUNCTION, "div pow exp exp2 log log2 sqrt rsqrt reciprocal sin cos softplus atan expm1 log1p"),
    "frexp": _ADD,
    **_rules(_REDUCTION, "sum mean amax amin max min cumsum any all argmax argmin"),
    **_rules(Rule("reduction", "reduction", add=2, mul=1), "var var_mean std linalg_vector_norm"),
    "nll_loss_forward": _REDUCTION,
    **_rules(Rule("reduction", "reduction", add=1), "topk sort"),
    **_rules(COPY, "clone _to_copy _unsafe_view repeat index_select cat _reshape_copy contiguous copy"),
    **_rules(
        FREE,
        "empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like new_zeros ones ones_like new_ones "
        "full full_like new_full arange scalar_tensor fill_ zero_ copy_ lift_fresh lift_fresh_copy promote_types eye "
        "_local_scalar_dense detach stack index index_put gather scatter slice_scatter "
        "select_scatter masked_scatter constant_pad_nd roll flip repeat_interleave masked_select nonzero tril triu "
        "linspace bucketize bitwise_not bitwise_and bitwise_or isin equal is_nonzero item "
        "_is_all_true _assert_async _assert_scalar bernoulli_ native_dropout one_hot pad unique_consecutive _unique2 "
        "set_ resize_ diff isfinite isnan isinf prod floor_divide resolve_conj resolve_neg",
    ),
}


def rule_of(operation: torch._ops.OpOverload) -> Rule:
    """The rule of an operation, in place or not; views are free, what is not in the table has the role ``unknown``."""
    if operation.is_view:
        return FREE
    name = operation._schema.name.removeprefix("aten::")
    return RULES.get(name, RULES.get(name.removesuffix("_"), Rule("unknown")))
