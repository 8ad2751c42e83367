"""Sites of blocks that many families share."""

from typing import get_args

from fas.models.family import Role, SiteSpec


def attention(place: str, prefix: str = "") -> tuple[SiteSpec, ...]:
    """The four operands of the products of the attention module at ``place``."""
    return tuple(
        SiteSpec(prefix + role, (place,), coverage="attention", signed=role != "probabilities", role=role)
        for role in get_args(Role)
    )


# separate projections, and a gated FFN whose product is the site of the down-projection
GATED_BLOCK = (
    SiteSpec("attention_input", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    *attention("self_attn"),
    SiteSpec("attention_output", ("self_attn.o_proj",)),
    SiteSpec("ffn_input", ("mlp.gate_proj", "mlp.up_proj")),
    SiteSpec("ffn_hidden", ("mlp.down_proj",), coverage="ffn", rotates=True),
)

# post-norm encoder of the BERT kind
BERT_BLOCK = (
    SiteSpec("attention_input", ("attention.self.query", "attention.self.key", "attention.self.value")),
    *attention("attention.self"),
    SiteSpec("attention_output", ("attention.output.dense",)),
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
    SiteSpec("attention_output", ("self_attn.out_proj",)),
    SiteSpec("ffn_input", ("mlp.fc1",)),
    SiteSpec("ffn_hidden", ("mlp.fc2",), coverage="ffn", signed=False, replaces="mlp.activation_fn"),
)
# BLIP's vision towers: CLIP's block with one fused projection
BLIP_VISION_BLOCK = (
    SiteSpec("attention_input", ("self_attn.qkv",)),
    SiteSpec("attention_output", ("self_attn.projection",)),
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
