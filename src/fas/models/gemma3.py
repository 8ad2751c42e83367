"""Gemma 3: as Gemma 2, with norms on query and key instead of soft-capping."""

from fas.models.family import Family, register
from fas.models.shapes import GATED_BLOCK, classes

register(
    Family(
        name="gemma3",
        segment="Gemma3TextModel",
        block="Gemma3DecoderLayer",
        positions="rotary",
        sites=GATED_BLOCK,
        analog=classes("Gemma3", "Attention", "MLP", "RMSNorm", "RotaryEmbedding", "TextScaledWordEmbedding"),
    )
)
