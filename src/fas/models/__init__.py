"""Where sites are in each architecture: declarative data, one small file a family."""

from fas.models import (  # noqa: F401  (importing a family registers it)
    bert,
    blip,
    blip2,
    clip,
    distilbert,
    gemma2,
    gemma3,
    git,
    gpt2,
    gpt_neox,
    idefics3,
    llama,
    llava,
    mistral,
    modernbert,
    opt,
    phi3,
    qwen2,
    qwen2_vl,
    qwen3,
    roberta,
    siglip,
    t5,
    vit,
)
from fas.models.family import REGISTRY, Family, SiteSpec, register, supported
from fas.models.find import Placement, Segment, find_placements, find_segments
from fas.models.outside import Stack, linear_macs, note_unknown, unknown_stacks
from fas.models.select import Plan, listed, planned

__all__ = [
    "REGISTRY",
    "Family",
    "Placement",
    "Plan",
    "Segment",
    "SiteSpec",
    "Stack",
    "find_placements",
    "find_segments",
    "linear_macs",
    "listed",
    "note_unknown",
    "planned",
    "register",
    "supported",
    "unknown_stacks",
]
