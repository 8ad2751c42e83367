"""GIT: a vision tower, a projection, and one transformer over image and text.

That transformer is folded behind its embeddings, so that the image (whose tower is a segment of its own) meets it in B rows.
"""

from fas.models.family import Family, SiteSpec, register
from fas.models.shapes import BERT_BLOCK, CLIP_BLOCK, CONVOLUTION, classes

register(
    Family(
        name="git",
        segment="GitVisionModel",
        part="vision",
        block="GitVisionEncoderLayer",
        sites=CLIP_BLOCK,
        analog=classes("GitVision", "Transformer", "Embeddings", "Encoder", "Attention", "MLP") | CONVOLUTION,
    )
)
register(
    Family(
        name="git",
        segment="GitProjection",
        part="projector",
        segment_sites=(SiteSpec("projection_input", ("visual_projection.0",)),),
        analog=frozenset({"Sequential"}),
        foldable=frozenset({"embeddings"}),
        anchors=("embeddings",),
    )
)
register(
    Family(
        name="git",
        segment="GitEncoder",
        block="GitLayer",
        sites=BERT_BLOCK,
        analog=classes("Git", "Attention", "SelfAttention", "SelfOutput", "Intermediate", "Output"),
        foldable=frozenset({"hidden_states", "attention_mask"}),
        anchors=("hidden_states",),
        runs_last=True,
    )
)
