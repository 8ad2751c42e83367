"""Sites of blocks that many families share."""

from typing import get_args

from fas.models.family import Operand, SiteSpec


def attention(place: str, cross: bool = False) -> tuple[SiteSpec, ...]:
    """Of the attention module at ``place``: the four operands of its products, and the functions of its softmax.

    ``cross``: its keys and values come from the encoder; blocks of an encoder lack it.
    """
    prefix, needs = ("cross_", place) if cross else ("", None)
    operands = tuple(
        SiteSpec(
            prefix + role, (place,), "attention", role != "probabilities", kind="cross" if cross else "operand", role=role,
            needs=needs,
        )
        for role in get_args(Operand)
    )  # fmt: skip
    groups = tuple(
        SiteSpec(prefix + role, (place,), "full", signed=False, kind="group", role=role, needs=needs)
        for role in ("exponential", "reciprocal", "softcap")
    )
    return operands + groups


def gated(activation: str, up: str, down: str, half: bool = False, needs: str | None = None) -> tuple[SiteSpec, ...]:
    """Of a gated FFN: both factors of its product, and the product, which ``down`` reads.

    ``half``: the second half of what ``up`` gives is meant, the first goes through the activation.
    """
    return (
        SiteSpec("ffn_gate", (activation,), "full", kind="output", role="output", read_by=down, needs=needs),
        SiteSpec("ffn_up", (up,), "full", kind="output", role="output", read_by=down, half=half, needs=needs),
        SiteSpec("ffn_hidden", (down,), coverage="ffn", rotates="product", needs=needs),
    )


# separate projections, and a gated FFN whose product is the site of the down-projection
GATED_BLOCK = (
    SiteSpec("attention_input", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    *attention("self_attn"),
    SiteSpec("attention_output", ("self_attn.o_proj",), rotates="heads"),
    SiteSpec("ffn_input", ("mlp.gate_proj", "mlp.up_proj")),
    *gated("mlp.act_fn", "mlp.up_proj", "mlp.down_proj"),
)

# post-norm encoder of the BERT kind
BERT_BLOCK = (
    SiteSpec("attention_input", ("attention.self.query", "attention.self.key", "attention.self.value")),
    *attention("attention.self"),
    SiteSpec("attention_output", ("attention.output.dense",), rotates="heads"),
    SiteSpec("ffn_input", ("intermediate.dense",)),
    SiteSpec(
        "ffn_hidden", ("output.dense",), coverage="ffn", signed=False, replaces="intermediate.intermediate_act_fn"
    ),
)
BERT_POOLER = SiteSpec("pooler_input", ("pooler.dense",), optional=True, last=True)
BERT_PARTS = (
    "Embeddings", "Encoder", "Attention", "SelfAttention", "SelfOutput", "Intermediate", "Output", "Pooler",
)  # fmt: skip

# pre-norm encoder of CLIP's towers
CLIP_BLOCK = (
    SiteSpec("attention_input", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    *attention("self_attn"),
    SiteSpec("attention_output", ("self_attn.out_proj",), rotates="heads"),
    SiteSpec("ffn_input", ("mlp.fc1",)),
    SiteSpec("ffn_hidden", ("mlp.fc2",), coverage="ffn", signed=False, replaces="mlp.activation_fn"),
)
# BLIP's vision towers: CLIP's block with one fused projection
BLIP_VISION_BLOCK = (
    SiteSpec("attention_input", ("self_attn.qkv",)),
    *attention("self_attn"),
    SiteSpec("attention_output", ("self_attn.projection",), rotates="heads"),
    *(spec for spec in CLIP_BLOCK if spec.name.startswith("ffn")),
)
# patch embeddings: real-valued pixels go in, so they stay analog
CONVOLUTION = frozenset({"Conv2d"})


def classes(prefix: str, *parts: str) -> frozenset[str]:
    """Class names of one family that stay analog.

    >>> sorted(classes("Llama", "Attention", "MLP"))
    ['LlamaAttention', 'LlamaMLP']
    """
    return frozenset(prefix + part for part in parts)
