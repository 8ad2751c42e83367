"""Qwen2-VL: the vision tower packs the patches of all images in one sequence, the text has positions in three dimensions."""

from fas.models.family import FOLDABLE, Family, SiteSpec, register
from fas.models.shapes import GATED_BLOCK, attention, classes

register(
    Family(
        name="qwen2_vl",
        segment="Qwen2VisionTransformerPretrainedModel",
        part="vision",
        block="Qwen2VLVisionBlock",
        sites=(
            SiteSpec("attention_input", ("attn.qkv",)),
            *attention("attn"),
            SiteSpec("attention_output", ("attn.proj",), rotates="heads"),
            SiteSpec("ffn_input", ("mlp.fc1",)),
            SiteSpec("ffn_hidden", ("mlp.fc2",), coverage="ffn", signed=False, replaces="mlp.act"),
        ),
        segment_sites=(
            SiteSpec("merger_input", ("merger.mlp.0",), last=True),
            SiteSpec(
                "merger_hidden", ("merger.mlp.2",), coverage="ffn", signed=False, replaces="merger.mlp.1", last=True
            ),
        ),
        analog=frozenset(
            {
                "PatchEmbed", "Conv3d", "PatchMerger", "Sequential", "GELU", "VisionAttention", "VisionMlp",
                "Qwen2VLVisionRotaryEmbedding",
                "VisionRotaryEmbedding",  # its name in transformers 5.15
            }
        ),
        # patches of all images in one row of T·N, and T times the images' sizes: time-major, as everywhere
        foldable=frozenset({"hidden_states", "grid_thw"}),
        anchors=("hidden_states",),
        packed=frozenset({"grid_thw"}),
    )
)  # fmt: skip
register(
    Family(
        name="qwen2_vl",
        segment="Qwen2VLTextModel",
        block="Qwen2VLDecoderLayer",
        positions="rotary",
        sites=GATED_BLOCK,
        analog=classes("Qwen2VL", "Attention", "RMSNorm", "RotaryEmbedding") | {"Qwen2MLP"},
        foldable=FOLDABLE,
        batch_axis={"position_ids": -2},  # [B, S] or [3, B, S]
    )
)
