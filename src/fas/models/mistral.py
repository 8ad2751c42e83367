"""Mistral: LLaMA's block with a sliding window."""

from fas.models.family import Family, register
from fas.models.shapes import GATED_BLOCK, classes

register(
    Family(
        name="mistral",
        segment="MistralModel",
        block="MistralDecoderLayer",
        positions="rotary",
        sites=GATED_BLOCK,
        analog=classes("Mistral", "Attention", "MLP", "RMSNorm", "RotaryEmbedding"),
    )
)
