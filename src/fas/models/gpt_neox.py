"""GPT-NeoX (Pythia): attention and FFN side by side on one residual stream, a pointwise activation."""

from fas.models.family import Family, SiteSpec, register
from fas.models.shapes import attention, classes

register(
    Family(
        name="gpt_neox",
        segment="GPTNeoXModel",
        block="GPTNeoXLayer",
        positions="rotary",
        sites=(
            SiteSpec("attention_input", ("attention.query_key_value",)),
            *attention("attention"),
            SiteSpec("attention_output", ("attention.dense",), rotates="heads"),
            SiteSpec("ffn_input", ("mlp.dense_h_to_4h",)),
            SiteSpec("ffn_hidden", ("mlp.dense_4h_to_h",), coverage="ffn", signed=False, replaces="mlp.act"),
        ),
        analog=classes("GPTNeoX", "Attention", "MLP", "RotaryEmbedding"),
    )
)
