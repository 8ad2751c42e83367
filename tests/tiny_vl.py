"""Tiny random vision–language models, and batches of two images with a text each (of which one is padded on the left)."""

from __future__ import annotations

from typing import Any

import torch
from kept import copy_of
from tiny import VOCAB
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    GitConfig,
    GitForCausalLM,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

import fas

IMAGE = 5
"""The token that stands for a piece of an image."""

_SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_PLAIN = {"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = _PLAIN | _SPECIAL | {"vocab_size": VOCAB, "max_position_embeddings": 64}
_LLAMA = _TEXT | {"model_type": "llama", "num_key_value_heads": 2}
_VISION = _PLAIN | {"hidden_size": 24, "image_size": 12, "patch_size": 4}
_CLIP = _VISION | {"model_type": "clip_vision_model", "num_hidden_layers": 3}
_OPT = _TEXT | {"model_type": "opt", "ffn_dim": 44, "word_embed_proj_dim": 32}
_BLIP_TEXT = _TEXT | {"encoder_hidden_size": 32, "projection_dim": 16, "sep_token_id": 1, "hidden_act": "gelu"}
_IDEFICS = {"text_config": _LLAMA, "vision_config": _VISION | {"image_size": 16}, "image_token_id": IMAGE}
_QFORMER = _PLAIN | {
    "hidden_size": 16, "intermediate_size": 24, "encoder_hidden_size": 24, "vocab_size": VOCAB, "hidden_act": "gelu",
    "cross_attention_frequency": 2,
}  # fmt: skip
_QWEN = {
    "vision_config": {
        "depth": 2, "embed_dim": 24, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
    "text_config": _TEXT | {
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    },
    "image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8,
}  # fmt: skip

# model class, configuration class, settings, sites at coverage ffn and linear, most of them in one segment
MODELS: dict[str, tuple[type, type, dict[str, Any], dict[str, int], int]] = {
    "llava": (
        LlavaForConditionalGeneration, LlavaConfig,
        {"vision_config": _CLIP, "text_config": _LLAMA, "image_token_index": IMAGE, "image_token_id": IMAGE,
         "image_seq_length": 9},
        {"ffn": 2 + 1 + 2, "linear": 8 + 2 + 8}, 8,
    ),
    "smolvlm": (SmolVLMForConditionalGeneration, SmolVLMConfig, _IDEFICS, {"ffn": 4, "linear": 8 + 1 + 8}, 8),
    "idefics3": (Idefics3ForConditionalGeneration, Idefics3Config, _IDEFICS, {"ffn": 4, "linear": 8 + 1 + 8}, 8),
    "blip2": (
        Blip2ForConditionalGeneration, Blip2Config,
        {"vision_config": _VISION, "qformer_config": _QFORMER, "text_config": _OPT, "num_query_tokens": 4,
         "image_token_index": IMAGE, "image_token_id": IMAGE},
        {"ffn": 6, "linear": 8 + (7 + 4) + 8}, 11,
    ),
    "blip": (
        BlipForConditionalGeneration, BlipConfig, {"vision_config": _VISION | {"hidden_size": 32}, "text_config": _BLIP_TEXT},
        {"ffn": 4, "linear": 8 + 14}, 14,
    ),
    "blip_vqa": (
        BlipForQuestionAnswering, BlipConfig, {"vision_config": _VISION | {"hidden_size": 32}, "text_config": _BLIP_TEXT},
        {"ffn": 6, "linear": 8 + 14 + 14}, 14,
    ),
    "git": (
        GitForCausalLM, GitConfig, _TEXT | {"vision_config": _VISION, "tie_word_embeddings": False},
        {"ffn": 4, "linear": 8 + 1 + 8}, 8,
    ),
    "qwen2_vl": (
        Qwen2VLForConditionalGeneration, Qwen2VLConfig, _QWEN, {"ffn": 2 + 1 + 2, "linear": 8 + 2 + 8}, 10,
    ),
}  # fmt: skip
PIECES = {"llava": 9, "smolvlm": 4, "idefics3": 4, "blip2": 4, "qwen2_vl": 4}
"""Image tokens of one image in the text, where the text has them."""


def ann(name: str) -> PreTrainedModel:
    """An untrained model; weights are larger than transformers' and biases are not zero."""
    torch.manual_seed(0)
    model_class, config_class, settings, *_ = MODELS[name]
    model = model_class(config_class(**settings))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 2 or "query_tokens" in key:
                parameter.normal_(0, 0.25)
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part.can_generate():
            part.generation_config.eos_token_id = None  # generations have the length that a test asks for
    return model.eval()


def row(name: str, index: int) -> dict[str, Tensor]:
    """One image and its text ``[1, S]``; ``index`` 1 is padded on the left."""
    generator = torch.Generator().manual_seed(10 + index)
    ids = torch.randint(9, VOCAB, (1, 5), generator=generator)
    ids = torch.cat([torch.full((1, PIECES.get(name, 0)), IMAGE), ids], 1)
    mask = torch.ones_like(ids)
    if name == "qwen2_vl":
        ids = torch.cat([torch.tensor([[7]]), ids], 1)
        mask = torch.ones_like(ids)
    ids = torch.cat([torch.full((1, 2), 2), ids] if index == 1 else [ids, ids[:, -2:]], 1)
    mask = torch.cat([torch.full((1, 2), 0 if index == 1 else 1), mask], 1)
    size = 16 if name in ("smolvlm", "idefics3") else 12
    pixels = torch.randn(1, 3, size, size, generator=generator)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    if name in ("smolvlm", "idefics3"):
        inputs["pixel_values"] = pixels[:, None]
    if name == "qwen2_vl":
        grid = torch.tensor([[1, 4, 4]])
        inputs |= {
            "pixel_values": torch.randn(16, 3 * 2 * 4 * 4, generator=generator),
            "image_grid_thw": grid,
            "mm_token_type_ids": (ids == IMAGE).int(),
        }
    if name == "blip_vqa":
        inputs["decoder_input_ids"] = torch.randint(9, VOCAB, (1, 4), generator=generator)
        inputs["labels"] = inputs["decoder_input_ids"]  # without them it gives no output
    return inputs


def batch(name: str) -> dict[str, Tensor]:
    """Three rows together."""
    rows = [row(name, index) for index in range(3)]
    return {key: torch.cat([inputs[key] for inputs in rows]) for key in rows[0]}


def qcfs_model(name: str, coverage: str = "linear", **settings: Any) -> PreTrainedModel:
    """The prepared model (``settings`` are those of `SpikingConfig`)."""

    def build() -> PreTrainedModel:
        config = fas.SpikingConfig(coverage=coverage, **({"levels": 8, "timesteps": 4} | settings))  # type: ignore[arg-type]
        return fas.prepare(ann(name), config, [batch(name)])

    return copy_of(("tiny_vl", name, coverage, sorted(settings.items())), build)


def snn(name: str, coverage: str = "linear", **settings: Any) -> PreTrainedModel:
    """The converted model, uncalibrated."""
    return fas.convert(qcfs_model(name, coverage, **settings))
