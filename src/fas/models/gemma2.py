"""Gemma 2: norms also behind attention and FFN (weight 1 + w), soft-capped scores, alternating windows."""

from fas.models.family import Family, register
from fas.models.shapes import GATED_BLOCK, classes

register(
    Family(
        name="gemma2",
        segment="Gemma2Model",
        block="Gemma2DecoderLayer",
        positions="rotary",
        sites=GATED_BLOCK,
        analog=classes("Gemma2", "Attention", "MLP", "RMSNorm", "RotaryEmbedding", "TextScaledWordEmbedding"),
    )
)
