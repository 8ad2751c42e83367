"""GPT-2: pre-norm blocks, one fused projection for query, key and value, a pointwise activation."""

from fas.models.family import Family, SiteSpec, register
from fas.models.shapes import attention

register(
    Family(
        name="gpt2",
        segment="GPT2Model",
        block="GPT2Block",
        positions="learned",
        position_table="wpe",
        sites=(
            SiteSpec("attention_input", ("attn.c_attn",)),
            *attention("attn"),
            SiteSpec("attention_output", ("attn.c_proj",), rotates="heads"),
            SiteSpec("ffn_input", ("mlp.c_fc",)),
            SiteSpec("ffn_hidden", ("mlp.c_proj",), coverage="ffn", signed=False, replaces="mlp.act"),
        ),
        analog=frozenset({"GPT2Attention", "GPT2MLP"}),
    )
)
