"""ViT: pre-norm encoder of image patches, a pooler on the first one; the patch embedding stays analog."""

from fas.models.family import Family, SiteSpec, register
from fas.models.shapes import CONVOLUTION, attention, classes

register(
    Family(
        name="vit",
        segment="ViTModel",
        part="vision",
        block="ViTLayer",
        sites=(
            SiteSpec("attention_input", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
            *attention("attention"),
            SiteSpec("attention_output", ("attention.o_proj",), rotates="heads"),
            SiteSpec("ffn_input", ("mlp.fc1",)),
            SiteSpec("ffn_hidden", ("mlp.fc2",), coverage="ffn", signed=False, replaces="mlp.activation_fn"),
        ),
        segment_sites=(SiteSpec("pooler_input", ("pooler.dense",), optional=True, last=True),),
        analog=classes("ViT", "Embeddings", "PatchEmbeddings", "Attention", "MLP", "Pooler") | CONVOLUTION,
    )
)
