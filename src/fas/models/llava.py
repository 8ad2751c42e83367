"""LLaVA: what joins CLIP's vision tower and the language model (both families of their own) is a segment, too."""

from fas.models.family import Family, SiteSpec, register

register(
    Family(
        name="llava",
        segment="LlavaMultiModalProjector",
        part="projector",
        segment_sites=(
            SiteSpec("projector_input", ("linear_1",)),
            SiteSpec("projector_hidden", ("linear_2",), coverage="ffn", signed=False, replaces="act"),
        ),
        foldable=frozenset({"image_features"}),
        anchors=("image_features",),
        reads=("vision_tower", "vision_feature_layer"),
    )
)
