"""OPT: separate projections for query, key and value; some sizes project between embedding and hidden width."""

from fas.models.family import Family, SiteSpec, register
from fas.models.shapes import attention

register(
    Family(
        name="opt",
        segment="OPTDecoder",
        block="OPTDecoderLayer",
        positions="learned",
        position_table="embed_positions",
        sites=(
            SiteSpec("attention_input", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            *attention("self_attn"),
            SiteSpec("attention_output", ("self_attn.out_proj",), rotates="heads"),
            SiteSpec("ffn_input", ("fc1",)),
            SiteSpec("ffn_hidden", ("fc2",), coverage="ffn", signed=False, replaces="activation_fn"),
        ),
        segment_sites=(
            SiteSpec("embedding_projection", ("project_in",), optional=True),
            SiteSpec("output_projection", ("project_out",), optional=True, last=True),
        ),
        analog=frozenset({"OPTAttention", "OPTLearnedPositionalEmbedding"}),
    )
)
