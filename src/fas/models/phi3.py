"""Phi-3: fused projections for query, key and value, and for gate and up."""

from fas.models.family import Family, SiteSpec, register
from fas.models.shapes import attention, classes, gated

register(
    Family(
        name="phi3",
        segment="Phi3Model",
        block="Phi3DecoderLayer",
        positions="rotary",
        sites=(
            SiteSpec("attention_input", ("self_attn.qkv_proj",)),
            *attention("self_attn"),
            SiteSpec("attention_output", ("self_attn.o_proj",), rotates="heads"),
            SiteSpec("ffn_input", ("mlp.gate_up_proj",)),
            *gated("mlp.activation_fn", "mlp.gate_up_proj", "mlp.down_proj", half=True),
        ),
        analog=classes("Phi3", "Attention", "MLP", "RMSNorm", "RotaryEmbedding"),
    )
)
