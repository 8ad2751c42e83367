"""T5 (also 1.1 and Flan): encoder and decoder are one class; the decoder's blocks have cross-attention between.

Its keys and values are one site on the encoder's states; with a cache it fires at the first generated token only.
"""

from fas.models.family import FOLDABLE, Family, SiteSpec, register
from fas.models.shapes import attention, classes, gated


def _ffn(place: str) -> tuple[SiteSpec, ...]:
    """Sites of the FFN at ``place``: plain (``wi``), or gated (``wi_0``, ``wi_1``) as in T5 1.1."""
    return (
        SiteSpec("ffn_input", (f"{place}.wi",), needs=f"{place}.wi"),
        SiteSpec("ffn_input", (f"{place}.wi_0", f"{place}.wi_1"), needs=f"{place}.wi_0"),
        SiteSpec(
            "ffn_hidden", (f"{place}.wo",), coverage="ffn", signed=False, replaces=f"{place}.act", needs=f"{place}.wi"
        ),
        *gated(f"{place}.act", f"{place}.wi_1", f"{place}.wo", needs=f"{place}.wi_0"),
    )


_SELF, _CROSS = "layer.0.SelfAttention", "layer.1.EncDecAttention"

register(
    Family(
        name="t5",
        segment="T5Stack",
        block="T5Block",
        sites=(
            SiteSpec("attention_input", (f"{_SELF}.q", f"{_SELF}.k", f"{_SELF}.v")),
            *attention(_SELF),
            SiteSpec("attention_output", (f"{_SELF}.o",)),
            SiteSpec("cross_query_input", (f"{_CROSS}.q",), needs=_CROSS),
            SiteSpec("cross_states_input", (f"{_CROSS}.k", f"{_CROSS}.v"), needs=_CROSS),
            *attention(_CROSS, cross=True),
            SiteSpec("cross_output", (f"{_CROSS}.o",), needs=_CROSS),
            *_ffn("layer.1.DenseReluDense"),  # encoder
            *_ffn("layer.2.DenseReluDense"),  # decoder
        ),
        analog=classes(
            "T5", "LayerSelfAttention", "LayerCrossAttention", "LayerFF", "Attention", "DenseActDense",
            "DenseGatedActDense", "LayerNorm",
        ),
        foldable=FOLDABLE | {"encoder_hidden_states", "encoder_attention_mask"},
    )
)  # fmt: skip
