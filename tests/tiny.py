"""Tiny random models of every supported family, with signals that are not degenerate."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

import fas

VOCAB = 97
FAMILIES = ("gpt2", "opt", "opt_projected", "llama")
COVERAGES = ("ffn", "linear")

SITES = {
    ("gpt2", "ffn"): 2,
    ("gpt2", "linear"): 8,
    ("opt", "ffn"): 2,
    ("opt", "linear"): 8,
    ("opt_projected", "ffn"): 2,
    ("opt_projected", "linear"): 10,
    ("llama", "ffn"): 2,
    ("llama", "linear"): 8,
}


def ann(family: str, seed: int = 0, **settings: object) -> PreTrainedModel:
    """An untrained model of two layers; weights are larger than transformers' and biases are not zero."""
    torch.manual_seed(seed)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if family == "gpt2":
        model: PreTrainedModel = GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4, **special, **settings)
        )
    elif family.startswith("opt"):
        width = 16 if family == "opt_projected" else 32
        model = OPTForCausalLM(
            OPTConfig(
                vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=64, word_embed_proj_dim=width, **special, **settings,
            )
        )  # fmt: skip
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64, attention_bias=True, mlp_bias=True,
                **special, **settings,
            )
        )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 2:
                parameter.normal_(0, 0.25)
    model.generation_config.eos_token_id = None  # generations have the length that a test asks for
    return model.eval()


def tokens(batch: int = 3, length: int = 7, seed: int = 1) -> Tensor:
    """Random ordinary tokens ``[batch, length]``."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def qcfs_model(family: str, coverage: str = "linear", seed: int = 0, **settings: object) -> PreTrainedModel:
    """The prepared model (``settings`` are those of `SpikingConfig`)."""
    config = fas.SpikingConfig(coverage=coverage, **settings)
    return fas.prepare(ann(family, seed), config, [{"input_ids": tokens(4, 9, seed=seed + 2)}])


def snn(family: str, coverage: str = "linear", seed: int = 0, **settings: object) -> PreTrainedModel:
    """The converted model, uncalibrated."""
    return fas.convert(qcfs_model(family, coverage, seed, **settings))
