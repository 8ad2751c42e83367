"""Loads models for the command line, with one clear sentence where a folder is not what the command needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fas.errors import CheckpointError, ConfigError, FasError
from fas.neurons import Site
from fas.runtime.memory import keep_freed_memory
from fas.tasks.builtin import model_path


def resolve(model: str) -> str:
    """``builtin`` is the folder of the embedded model; anything else is a folder or a hub id already."""
    return str(model_path()) if model == "builtin" else model


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name!r} is not valid: choose auto, cpu or cuda[:index]") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda was asked for and this machine has no GPU that torch can use; choose --device cpu"
        )
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)  # the Trainer takes the current one; without an index older torch refuses it
    if device.type == "cpu":
        torch.set_float32_matmul_precision(_matmul_precision())
        keep_freed_memory()
    return device


def _matmul_precision() -> str:
    """``medium`` where that leaves fp32 accuracy: on CPUs without bf16 matrix units it is twice as fast (docs/log.md)."""
    x = torch.linspace(-1, 1, 128 * 128).sin().view(128, 128)
    exact = x.double() @ x.double()
    torch.set_float32_matmul_precision("medium")
    error = float(((x @ x).double() - exact).abs().max() / exact.abs().max())
    return "medium" if error < 1e-6 else "highest"


def load_ann(
    model: str, device: str = "auto", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The original model and its tokenizer. Raises `FasError` for a missing folder, or what is no causal language model."""
    config = _config(model)
    if getattr(config, "quantization_config", None) is not None:
        raise FasError(f"{model} is quantized or converted already; FAS starts from the original model")
    architectures = config.architectures or []
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise FasError(f"{model} is not a causal language model: its architectures are {architectures}")
    return _load(model, device, dtype)


def load_spiking(
    model: str, device: str = "auto", dtype: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A converted model and its tokenizer; never the ANN: raises `CheckpointError` unless ``model`` holds neurons."""
    spiking_config_of(model)
    loaded, tokenizer = _load(model, device, dtype)
    if not any(isinstance(module, Site) for module in loaded.modules()):
        raise CheckpointError(f"{model} says that it is converted, but loaded without neurons; upgrade fas-snn")
    return loaded, tokenizer


def spiking_config_of(model: str) -> Any:
    """The configuration of a converted model; raises `CheckpointError` for any other, `FasError` for a missing folder."""
    config = _config(model)
    description = getattr(config, "quantization_config", None)
    if description is None or description.get("quant_method") != "fas":
        raise CheckpointError(
            f"{model} is not a converted model; make one with: fas convert --model {model} --out DIR …"
        )
    return config


def block_length(model: PreTrainedModel, asked: int | None) -> int:
    """Tokens of a block: as ``asked``, else the model's context or 256; raises `ConfigError` beyond the context."""
    context = getattr(model.config, "max_position_embeddings", None)
    if asked is not None and context is not None and asked > context:
        raise ConfigError(f"length={asked} is beyond the model's context of {context} tokens; use --length {context}")
    return asked or min(context or 256, 256)


def _config(model: str) -> Any:
    place = resolve(model)
    path = Path(place)
    looks_local = path.exists() or place.startswith((".", "/", "~")) or place.count("/") != 1
    if looks_local and not (path / "config.json").exists():
        raise FasError(f"{model} is no folder with a config.json (and no hub id, which reads owner/name)")
    try:
        return AutoConfig.from_pretrained(place)
    except FasError:
        raise
    except (OSError, ValueError) as error:
        raise FasError(f"{model} cannot be loaded: {str(error).strip().splitlines()[0]}") from None


def _load(model: str, device: str, dtype: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    place = resolve(model)
    target = pick_device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        loaded, found = AutoModelForCausalLM.from_pretrained(place, dtype=dtype or "auto", output_loading_info=True)
        loaded = loaded.to(target).eval()
    except FasError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise FasError(f"{model} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if found["missing_keys"]:  # transformers would go on with random weights
        raise CheckpointError(f"{model} lacks {len(found['missing_keys'])} weights, first {min(found['missing_keys'])}")
    return loaded, cast(PreTrainedTokenizerBase, tokenizer)
