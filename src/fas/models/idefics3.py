"""Idefics3 and SmolVLM: a vision tower of CLIP's blocks, and a connector of one linear layer to the language model."""

from fas.models.family import FOLDABLE, Family, SiteSpec, register
from fas.models.shapes import CLIP_BLOCK, CONVOLUTION, classes

for prefix, name in (("Idefics3", "idefics3"), ("SmolVLM", "smolvlm")):
    register(
        Family(
            name=name,
            segment=f"{prefix}VisionTransformer",
            part="vision",
            block=f"{prefix}EncoderLayer",
            sites=CLIP_BLOCK,
            analog=classes(prefix, "VisionEmbeddings", "Encoder", "VisionAttention", "VisionMLP") | CONVOLUTION,
            foldable=FOLDABLE | {"patch_attention_mask"},
        )
    )
    register(
        Family(
            name=name,
            segment=f"{prefix}Connector",
            part="projector",
            segment_sites=(SiteSpec("connector_input", ("modality_projection.proj",)),),
            analog=classes(prefix, "SimpleMLP"),
            foldable=frozenset({"image_hidden_states"}),
            anchors=("image_hidden_states",),
        )
    )
