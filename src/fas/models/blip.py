"""BLIP: a vision tower and BERT-like text models, encoder and decoder, that look at the image by cross-attention."""

from fas.models.family import FOLDABLE, Family, SiteSpec, register
from fas.models.shapes import BERT_POOLER, BLIP_VISION_BLOCK, CONVOLUTION, attention, classes

_SELF, _CROSS = "attention", "crossattention"

register(
    Family(
        name="blip",
        segment="BlipVisionModel",
        part="vision",
        block="BlipEncoderLayer",
        sites=BLIP_VISION_BLOCK,
        twice=frozenset({"post_layernorm"}),  # once on all states, once more on the first
        analog=classes("Blip", "VisionEmbeddings", "Encoder", "Attention", "MLP") | CONVOLUTION,
    )
)
register(
    Family(
        name="blip",
        segment="BlipTextModel",
        block="BlipTextLayer",
        sites=(
            SiteSpec("attention_input", (f"{_SELF}.self.query", f"{_SELF}.self.key", f"{_SELF}.self.value")),
            *attention(f"{_SELF}.self"),
            SiteSpec("attention_output", (f"{_SELF}.output.dense",)),
            SiteSpec("cross_query_input", (f"{_CROSS}.self.query",), needs=_CROSS),
            SiteSpec("cross_states_input", (f"{_CROSS}.self.key", f"{_CROSS}.self.value"), needs=_CROSS),
            *attention(f"{_CROSS}.self", cross=True),
            SiteSpec("cross_output", (f"{_CROSS}.output.dense",), needs=_CROSS),
            SiteSpec("ffn_input", ("intermediate.dense",)),
            SiteSpec(
                "ffn_hidden",
                ("output.dense",),
                coverage="ffn",
                signed=False,
                replaces="intermediate.intermediate_act_fn",
            ),
        ),
        segment_sites=(BERT_POOLER,),
        analog=classes(
            "BlipText", "Embeddings", "Encoder", "Attention", "SelfAttention", "SelfOutput", "Intermediate", "Output",
            "Pooler",
        ),
        foldable=FOLDABLE | {"encoder_embeds", "encoder_hidden_states", "encoder_attention_mask"},
        anchors=("input_ids", "inputs_embeds", "encoder_embeds"),
    )
)  # fmt: skip
