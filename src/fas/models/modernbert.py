"""ModernBERT: pre-norm encoder, fused projections, a gated FFN, alternating local and global attention."""

from fas.models.family import Family, SiteSpec, register
from fas.models.shapes import attention, classes, gated

register(
    Family(
        name="modernbert",
        segment="ModernBertModel",
        block="ModernBertEncoderLayer",
        sites=(
            SiteSpec("attention_input", ("attn.Wqkv",)),
            *attention("attn"),
            SiteSpec("attention_output", ("attn.Wo",), rotates="heads"),
            SiteSpec("ffn_input", ("mlp.Wi",)),
            *gated("mlp.act", "mlp.Wi", "mlp.Wo", half=True),
        ),
        analog=classes("ModernBert", "Embeddings", "Attention", "MLP", "RotaryEmbedding"),
    )
)
