"""LLaMA: grouped queries, RMSNorm, rotary positions, a gated FFN."""

from fas.models.family import Family, register
from fas.models.shapes import GATED_BLOCK, classes

register(
    Family(
        name="llama",
        segment="LlamaModel",
        block="LlamaDecoderLayer",
        positions="rotary",
        sites=GATED_BLOCK,
        analog=classes("Llama", "Attention", "MLP", "RMSNorm", "RotaryEmbedding"),
    )
)
