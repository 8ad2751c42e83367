"""BLIP-2: a vision tower and the Q-Former; the language model is a family of its own.

The single linear layer between Q-Former and language model stays analog: it is no module that time could be folded through.
"""

from fas.models.family import Family, SiteSpec, register
from fas.models.shapes import BLIP_VISION_BLOCK, CONVOLUTION, attention, classes

_SELF, _CROSS = "attention", "crossattention"


def _ffn(branch: str, name: str) -> tuple[SiteSpec, ...]:
    """FFN of the image's queries, or (where the model has it) of the text beside them."""
    into, out = f"intermediate{branch}", f"output{branch}"
    return (
        SiteSpec(f"{name}_input", (f"{into}.dense",), needs=into),
        SiteSpec(
            f"{name}_hidden",
            (f"{out}.dense",),
            coverage="ffn",
            signed=False,
            replaces=f"{into}.intermediate_act_fn",
            needs=into,
        ),
    )


register(
    Family(
        name="blip2",
        segment="Blip2VisionModel",
        part="vision",
        block="Blip2EncoderLayer",
        sites=BLIP_VISION_BLOCK,
        twice=frozenset({"post_layernorm"}),  # once on all states, once more on the first
        analog=classes("Blip2", "VisionEmbeddings", "Encoder", "Attention", "MLP") | CONVOLUTION,
    )
)
register(
    Family(
        name="blip2",
        segment="Blip2QFormerModel",
        part="projector",
        block="Blip2QFormerLayer",
        sites=(
            SiteSpec(
                "attention_input",
                (f"{_SELF}.attention.query", f"{_SELF}.attention.key", f"{_SELF}.attention.value"),
            ),
            *attention(f"{_SELF}.attention"),
            SiteSpec("attention_output", (f"{_SELF}.output.dense",)),
            SiteSpec("cross_query_input", (f"{_CROSS}.attention.query",), needs=_CROSS),
            SiteSpec("cross_states_input", (f"{_CROSS}.attention.key", f"{_CROSS}.attention.value"), needs=_CROSS),
            *attention(f"{_CROSS}.attention", cross=True),
            SiteSpec("cross_output", (f"{_CROSS}.output.dense",), needs=_CROSS),
            *_ffn("_query", "ffn"),
            *_ffn("", "text_ffn"),
        ),
        analog=classes(
            "Blip2QFormer", "Encoder", "Attention", "MultiHeadAttention", "SelfOutput", "Intermediate", "Output"
        ),
        foldable=frozenset({"query_embeds", "attention_mask", "encoder_hidden_states", "encoder_attention_mask"}),
        anchors=("query_embeds",),
    )
)
