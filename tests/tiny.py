"""Tiny random models of every supported family, with signals that are not degenerate."""

from __future__ import annotations

import torch
from kept import copy_of
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipTextConfig,
    SiglipTextModel,
    ViTConfig,
    ViTForImageClassification,
)

import fas

VOCAB = 97
COVERAGES = ("ffn", "linear", "attention", "full")

_SPECIAL = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_PLAIN = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_GEMMA = _GROUPED | {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA2 = _GEMMA | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}
_OPT = {
    "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip

# model class, configuration class, settings
DECODERS: dict[str, tuple[type, type, dict[str, object]]] = {
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "opt": (OPTForCausalLM, OPTConfig, _OPT | {"word_embed_proj_dim": 32}),
    "opt_projected": (OPTForCausalLM, OPTConfig, _OPT | {"word_embed_proj_dim": 16}),
    "llama": (LlamaForCausalLM, LlamaConfig, _GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, _PLAIN),
    "mistral": (MistralForCausalLM, MistralConfig, _GROUPED | {"sliding_window": 4}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, _GROUPED),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, _GROUPED | {"head_dim": 8}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, _GEMMA2),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, _GEMMA | {"query_pre_attn_scalar": 8}),
    "phi3": (Phi3ForCausalLM, Phi3Config, _GROUPED),
}
FAMILIES = tuple(DECODERS)
FIRST = ("gpt2", "opt", "opt_projected", "llama")
"""Those on which everything is tested; the others differ from one of them in data only."""

# of a block: one site in the FFN; three more linear inputs; four operands of the attention products
BLOCK_SITES = {"ffn": 1, "linear": 4, "attention": 8}
SITES = {(family, coverage): 2 * count for family in FAMILIES for coverage, count in BLOCK_SITES.items()}
# full, beside those: two functions of softmax a block, two sites a norm (two norms a block, one behind them) …
SITES |= {(family, "full"): 2 * 8 + 2 * 2 + 2 * (2 * 2 + 1) for family in FAMILIES}
for _family in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"):
    SITES[_family, "full"] += 2 * 3  # … of a gated FFN the activation and both factors
SITES["qwen3", "full"] += 2 * 2 * 2  # norms of query and key
SITES["gemma2", "full"] += 2 * (2 * 2 + 1)  # two norms behind attention and FFN, and soft-capping
SITES["gemma3", "full"] += 2 * (2 * 2 + 2 * 2)
for _coverage in ("linear", "attention", "full"):
    SITES["opt_projected", _coverage] += 2


def ann(family: str, seed: int = 0, **settings: object) -> PreTrainedModel:
    """An untrained model of two layers; weights are larger than transformers' and biases are not zero."""
    torch.manual_seed(seed)
    model_class, config_class, own = (DECODERS | ENCODERS)[family]
    model = model_class(config_class(**(_SPECIAL if "vocab_size" in config_class().to_dict() else {}) | own | settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 2:
                parameter.normal_(0, 0.25)
    if model.can_generate():
        model.generation_config.eos_token_id = None  # generations have the length that a test asks for
    return model.eval()


_PATCHES = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 12,
    "patch_size": 4, "num_labels": 5,
}  # fmt: skip
_DISTILBERT = {"dim": 32, "hidden_dim": 44, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
_MODERN = _PLAIN | {"local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 1}

ENCODERS: dict[str, tuple[type, type, dict[str, object]]] = {
    "bert_mlm": (BertForMaskedLM, BertConfig, _PLAIN),
    "bert_sequence": (BertForSequenceClassification, BertConfig, _PLAIN | {"num_labels": 3}),
    "bert_token": (BertForTokenClassification, BertConfig, _PLAIN | {"num_labels": 3}),
    "bert_answer": (BertForQuestionAnswering, BertConfig, _PLAIN),
    "bert_choice": (BertForMultipleChoice, BertConfig, _PLAIN),
    "roberta_mlm": (RobertaForMaskedLM, RobertaConfig, _PLAIN),
    "roberta_sequence": (RobertaForSequenceClassification, RobertaConfig, _PLAIN),
    "distilbert_mlm": (DistilBertForMaskedLM, DistilBertConfig, _DISTILBERT),
    "distilbert_sequence": (DistilBertForSequenceClassification, DistilBertConfig, _DISTILBERT),
    "modernbert_mlm": (ModernBertForMaskedLM, ModernBertConfig, _MODERN),
    "modernbert_sequence": (ModernBertForSequenceClassification, ModernBertConfig, _MODERN),
    "vit_image": (ViTForImageClassification, ViTConfig, _PATCHES),
    "clip_image": (CLIPForImageClassification, CLIPConfig, {"vision_config": _PATCHES, "num_labels": 5}),
    "clip_text": (CLIPTextModelWithProjection, CLIPTextConfig, _PLAIN | {"projection_dim": 16}),
    "siglip_image": (SiglipForImageClassification, SiglipConfig, {"vision_config": _PATCHES, "num_labels": 5}),
    "siglip_text": (SiglipTextModel, SiglipTextConfig, _PLAIN),
}


def inputs_for(model: PreTrainedModel, batch: int = 3, length: int = 7, seed: int = 1) -> dict[str, Tensor]:
    """Arguments of any tiny model: tokens, two choices of them, or images."""
    if model.main_input_name == "pixel_values":
        size = (batch, 3, _PATCHES["image_size"], _PATCHES["image_size"])
        return {"pixel_values": torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=model.dtype)}
    ids = tokens(batch, length, seed)
    return {"input_ids": torch.stack([ids, ids.flip(1)], 1) if "MultipleChoice" in type(model).__name__ else ids}


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """The model in fp64, where no rounding can move a spike. Gemma 2 stays fp32: in fp64 transformers' own attention gives
    NaN for padding (the mask's least value overflows in its fp32 softmax)."""
    return model if getattr(model.config, "attn_logit_softcapping", None) else model.double()


def tokens(batch: int = 3, length: int = 7, seed: int = 1) -> Tensor:
    """Random ordinary tokens ``[batch, length]``."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def qcfs_model(family: str, coverage: str = "linear", seed: int = 0, **settings: object) -> PreTrainedModel:
    """The prepared model (``settings`` are those of `SpikingConfig`)."""

    def build() -> PreTrainedModel:
        model = ann(family, seed)
        config = fas.SpikingConfig(coverage=coverage, **({"levels": 8, "timesteps": 4} | settings))
        return fas.prepare(model, config, [inputs_for(model, 4, 9, seed=seed + 2)])

    return copy_of(("tiny", family, coverage, seed, sorted(settings.items())), build)


def snn(family: str, coverage: str = "linear", seed: int = 0, **settings: object) -> PreTrainedModel:
    """The converted model, uncalibrated."""
    return fas.convert(qcfs_model(family, coverage, seed, **settings))
