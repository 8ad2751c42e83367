"""Qwen3: LLaMA's block with norms on query and key."""

from fas.models.family import Family, register
from fas.models.shapes import GATED_BLOCK, classes

register(
    Family(
        name="qwen3",
        segment="Qwen3Model",
        block="Qwen3DecoderLayer",
        positions="rotary",
        sites=GATED_BLOCK,
        analog=classes("Qwen3", "Attention", "MLP", "RMSNorm", "RotaryEmbedding"),
    )
)
