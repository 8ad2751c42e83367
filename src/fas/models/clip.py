"""CLIP: a text and a vision tower of the same pre-norm blocks; each is a segment, projections and logits stay analog."""

from fas.models.family import Family, register
from fas.models.shapes import CLIP_BLOCK, CONVOLUTION, classes

for tower in ("Text", "Vision"):
    register(
        Family(
            name="clip",
            segment=f"CLIP{tower}Model",
            part="vision" if tower == "Vision" else "text",
            block="CLIPEncoderLayer",
            sites=CLIP_BLOCK,
            analog=classes("CLIP", "TextEmbeddings", "VisionEmbeddings", "Encoder", "Attention", "MLP") | CONVOLUTION,
        )
    )
