"""Qwen2: LLaMA's block with biases on query, key and value."""

from fas.models.family import Family, register
from fas.models.shapes import GATED_BLOCK, classes

register(
    Family(
        name="qwen2",
        segment="Qwen2Model",
        block="Qwen2DecoderLayer",
        positions="rotary",
        sites=GATED_BLOCK,
        analog=classes("Qwen2", "Attention", "MLP", "RMSNorm", "RotaryEmbedding"),
    )
)
