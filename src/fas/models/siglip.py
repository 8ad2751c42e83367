"""SigLIP: CLIP's blocks; the text tower ends in a linear head, the vision tower in one attention over the patches (analog)."""

from fas.models.family import Family, SiteSpec, register
from fas.models.shapes import CLIP_BLOCK, CONVOLUTION, classes

_PARTS = classes("Siglip", "TextEmbeddings", "VisionEmbeddings", "Encoder", "Attention", "MLP")
_POOLING = frozenset({"SiglipMultiheadAttentionPoolingHead", "MultiheadAttention", "NonDynamicallyQuantizableLinear"})

register(
    Family(
        name="siglip",
        segment="SiglipTextModel",
        block="SiglipEncoderLayer",
        sites=CLIP_BLOCK,
        segment_sites=(SiteSpec("head_input", ("head",), last=True),),
        analog=_PARTS,
    )
)
register(
    Family(
        name="siglip",
        segment="SiglipVisionModel",
        part="vision",
        block="SiglipEncoderLayer",
        sites=CLIP_BLOCK,
        segment_sites=(
            SiteSpec("head_ffn_input", ("head.mlp.fc1",), optional=True, last=True),
            SiteSpec(
                "head_ffn_hidden",
                ("head.mlp.fc2",),
                coverage="ffn",
                signed=False,
                replaces="head.mlp.activation_fn",
                optional=True,
                last=True,
            ),
        ),
        analog=_PARTS | _POOLING | CONVOLUTION,
    )
)
