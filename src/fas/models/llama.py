"""LLaMA: grouped queries, RMSNorm, rotary positions, a gated FFN whose product is the site of the down-projection."""

from fas.models.family import Family, SiteSpec, register

register(
    Family(
        name="llama",
        segment="LlamaModel",
        block="LlamaDecoderLayer",
        sites=(
            SiteSpec("attention_input", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            SiteSpec("attention_output", ("self_attn.o_proj",)),
            SiteSpec("ffn_input", ("mlp.gate_proj", "mlp.up_proj")),
            SiteSpec("ffn_hidden", ("mlp.down_proj",), coverage="ffn", rotates=True),
        ),
        analog=frozenset({"LlamaAttention", "LlamaMLP", "LlamaRMSNorm", "LlamaRotaryEmbedding"}),
    )
)
