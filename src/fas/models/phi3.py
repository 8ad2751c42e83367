"""Phi-3: fused projections for query, key and value, and for gate and up."""

from fas.models.family import Family, SiteSpec, register
from fas.models.shapes import attention, classes

register(
    Family(
        name="phi3",
        segment="Phi3Model",
        block="Phi3DecoderLayer",
        sites=(
            SiteSpec("attention_input", ("self_attn.qkv_proj",)),
            *attention("self_attn"),
            SiteSpec("attention_output", ("self_attn.o_proj",)),
            SiteSpec("ffn_input", ("mlp.gate_up_proj",)),
            SiteSpec("ffn_hidden", ("mlp.down_proj",), coverage="ffn", rotates=True),
        ),
        analog=classes("Phi3", "Attention", "MLP", "RMSNorm", "RotaryEmbedding"),
    )
)
