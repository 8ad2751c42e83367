"""Loads models for the command line, with one clear sentence where a folder is not what the command needs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from fas import world
from fas.errors import CheckpointError, ConfigError, FasError
from fas.neurons import Site
from fas.runtime.memory import keep_freed_memory
from fas.tasks.builtin import model_path

_HEADS: dict[str, Any] = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForCausalLM": AutoModelForCausalLM,
    "LMHeadModel": AutoModelForCausalLM,
}


def resolve(model: str) -> str:
    """``builtin`` is the folder of the embedded model; anything else is a folder or a hub id already."""
    return str(model_path()) if model == "builtin" else model


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one; under torchrun each process's own. Joins the processes of torchrun."""
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
        device = torch.device("cuda", _own_gpu() if device.index is None else _alone(device))
        torch.cuda.set_device(device)  # the Trainer takes the current one; without an index older torch refuses it
    if device.type == "cpu":
        torch.set_float32_matmul_precision(_matmul_precision())
        keep_freed_memory()
    world.join(device.type)
    return device


def _own_gpu() -> int:
    if world.launched()[1] == 1:
        return torch.cuda.current_device()
    if world.local_rank() >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"process {world.local_rank()} of this machine has no GPU of its own, for there are {count}; start "
            f"--nproc-per-node {count}, or choose --device cpu"
        )
    return world.local_rank()


def _alone(device: torch.device) -> int:
    if world.launched()[1] > 1:
        raise ConfigError(f"device={device} is one GPU for all processes of torchrun; choose --device cuda")
    return device.index


def _matmul_precision() -> str:
    """``medium`` where that leaves fp32 accuracy: on CPUs without bf16 matrix units it is twice as fast (docs/log.md)."""
    x = torch.linspace(-1, 1, 128 * 128).sin().view(128, 128)
    exact = x.double() @ x.double()
    torch.set_float32_matmul_precision("medium")
    error = float(((x @ x).double() - exact).abs().max() / exact.abs().max())
    return "medium" if error < 1e-6 else "highest"


def load_ann(
    model: str, device: str = "auto", dtype: str = "float32", any_task: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The original model and its tokenizer. Raises `FasError` for a missing folder, or what is no causal language model
    (``any_task``: nor any other with a head)."""
    config = _config(model)
    if getattr(config, "quantization_config", None) is not None:
        raise FasError(f"{model} is quantized or converted already; FAS starts from the original model")
    cls = auto_class_of(config)
    if cls is None or (cls is not AutoModelForCausalLM and not any_task):
        raise FasError(f"{model} is not a causal language model: its architectures are {config.architectures or []}")
    return _load(model, device, dtype, cls)


def load_seeing(model: str, device: str = "auto", dtype: str = "float32") -> tuple[PreTrainedModel, ProcessorMixin]:
    """The original image-text-to-text model and its processor. Raises `FasError` for any other model."""
    config = _config(model)
    if auto_class_of(config) is not AutoModelForImageTextToText:
        raise FasError(
            f"{model} is no image-text-to-text model that FAS knows: its architectures are {config.architectures or []}"
        )
    if importlib.util.find_spec("PIL") is None:
        raise FasError("images need Pillow, which is not installed; pip install 'fas-snn[vision]'")
    ann, processor = load_ann(model, device, dtype, any_task=True)
    return ann, cast(ProcessorMixin, processor)


def load_classifier(
    model: str, head: Head, device: str = "auto", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, bool]:
    """The original model with a head for ``head``'s classes, its tokenizer, and whether the head is new (random, by the
    seed of `torch`). Raises `FasError` for a missing folder or a head for other classes."""
    config = _config(model)
    if getattr(config, "quantization_config", None) is not None:
        raise FasError(f"{model} is quantized or converted already; FAS starts from the original model")
    has_head = auto_class_of(config) is AutoModelForSequenceClassification
    if has_head and config.num_labels != head.size:
        raise FasError(
            f"{model} has a head for {config.num_labels} classes and the data has {head.size}; give the model that it was "
            "made from, or the data that it was trained on"
        )
    more: dict[str, Any] = {} if has_head else head.settings()
    loaded, tokenizer, missing = _loaded(model, device, dtype, AutoModelForSequenceClassification, more)
    prefix = f"{loaded.base_model_prefix}."
    lacking = [name for name in missing if name.startswith(prefix) and ".pooler." not in name]
    if lacking or (has_head and missing):
        raise CheckpointError(f"{model} lacks {len(missing)} weights, first {min(lacking or missing)}")
    if loaded.config.pad_token_id is None:
        loaded.config.pad_token_id = tokenizer.pad_token_id
    if loaded.config.pad_token_id is None:
        raise FasError(f"{model} has no padding token, so texts of different length cannot be one batch")
    return loaded, tokenizer, not has_head


@dataclass(frozen=True)
class Head:
    """What is told apart: names of classes, or None for one real value."""

    names: tuple[str, ...] | None

    @property
    def size(self) -> int:
        """Numbers that the head gives."""
        return 1 if self.names is None else len(self.names)

    def settings(self) -> dict[str, Any]:
        """What transformers is told about it."""
        if self.names is None:
            return {"num_labels": 1, "problem_type": "regression"}
        by_number = dict(enumerate(self.names))
        return {
            "num_labels": self.size, "problem_type": "single_label_classification", "id2label": by_number,
            "label2id": {name: number for number, name in by_number.items()},
        }  # fmt: skip


def auto_class_of(config: Any) -> Any:
    """The class that loads a model as what it was saved as; None for a model without a head that FAS knows."""
    names = config.architectures or []
    seeing = AutoModelForImageTextToText._model_mapping.get(type(config), None)
    if seeing is not None:  # GIT's class ends like a language model's; BLIP's for answers is none of these
        return AutoModelForImageTextToText if seeing.__name__ in names else None
    return next((cls for ending, cls in _HEADS.items() if any(name.endswith(ending) for name in names)), None)


def load_saved(place: Path | str, device: torch.device) -> PreTrainedModel:
    """A model that FAS saved, in fp32, as what it was saved as."""
    cls = auto_class_of(AutoConfig.from_pretrained(place))
    return cls.from_pretrained(place, dtype=torch.float32).to(device).eval()


def load_spiking(
    model: str, device: str = "auto", dtype: str | None = None, any_task: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A converted model and its tokenizer; never the ANN: raises `CheckpointError` unless ``model`` holds neurons, and
    `FasError` if it is no causal language model, unless ``any_task`` will do."""
    cls = auto_class_of(spiking_config_of(model))
    if cls is not AutoModelForCausalLM and not any_task:
        names = _config(model).architectures
        hint = "; fas generate takes it with --image" if cls is AutoModelForImageTextToText else ""
        raise FasError(f"{model} is no causal language model but {', '.join(names or ['of an unknown class'])}{hint}")
    loaded, tokenizer = _load(model, device, dtype, cls)
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


def block_length(config: PretrainedConfig, asked: int | None) -> int:
    """Tokens of a block: as ``asked``, else the model's context or 256; raises `ConfigError` beyond the context."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
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


def _load(
    model: str, device: str, dtype: str | None, cls: Any = AutoModelForCausalLM
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    loaded, tokenizer, missing = _loaded(model, device, dtype, cls, {})
    if missing:  # transformers would go on with random weights
        raise CheckpointError(f"{model} lacks {len(missing)} weights, first {min(missing)}")
    return loaded, tokenizer


def _loaded(
    model: str, device: str, dtype: str | None, cls: Any, more: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Model, tokenizer (or the processor of images and text), and the names of weights that the checkpoint lacks."""
    place = resolve(model)
    target = pick_device(device)
    try:
        reads_images = cls is AutoModelForImageTextToText
        tokenizer: Any = (AutoProcessor if reads_images else AutoTokenizer).from_pretrained(place)
        loaded, found = cls.from_pretrained(place, dtype=dtype or "auto", output_loading_info=True, **more)
        loaded = loaded.to(target).eval()
    except FasError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise FasError(f"{model} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    return loaded, tokenizer, list(found["missing_keys"])
