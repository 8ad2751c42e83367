"""Loads models for the command line, with one clear sentence where a folder is not what the command needs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from fas import world
from fas.conversion.files import indexed, refuse_pointer
from fas.conversion.integrity import check_saved
from fas.conversion.leftovers import refuse_leftovers
from fas.conversion.reading import configuration, reading
from fas.errors import CheckpointError, ConfigError, FasError, with_extra
from fas.neurons import Site
from fas.pipeline.gguf import folder_of, gguf_file_of
from fas.runtime.finite import require_finite
from fas.runtime.memory import keep_freed_memory
from fas.tasks.builtin import model_path, vision_path
from fas.tasks.glue import CAPTIONING, IMAGE_CLASSIFICATION, VQA, ZERO_SHOT_IMAGES

_HEADS: dict[str, Any] = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForImageClassification": AutoModelForImageClassification,
    "ForCausalLM": AutoModelForCausalLM,
    "LMHeadModel": AutoModelForCausalLM,
}
_TASKS_OF: dict[Any, tuple[str, ...]] = {
    AutoModelForImageClassification: (IMAGE_CLASSIFICATION,),
    AutoModelForImageTextToText: (VQA, CAPTIONING),
    AutoModelForZeroShotImageClassification: (ZERO_SHOT_IMAGES,),
}
READERS: dict[Any, Any] = {
    AutoModelForImageTextToText: AutoProcessor,
    AutoModelForZeroShotImageClassification: AutoProcessor,
    AutoModelForImageClassification: AutoImageProcessor,
}
"""What encodes the inputs of models that see; of others a tokenizer."""


def resolve(model: str) -> str:
    """``builtin`` and ``builtin-vision`` are folders of embedded models, a GGUF file is one in the user's cache; anything else
    is a folder or a hub id already."""
    embedded = {"builtin": model_path, "builtin-vision": vision_path}
    if model in embedded:
        return str(embedded[model]())
    file = gguf_file_of(model)
    return model if file is None else str(folder_of(file))


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
    x = torch.arange(128.0 * 128).square().sin().view(128, 128)  # without structure that cancels
    exact = x.double() @ x.double()
    torch.set_float32_matmul_precision("medium")
    error = float(((x @ x).double() - exact).abs().max() / exact.abs().max())
    return "medium" if error < 1e-5 else "highest"  # bf16 has 1e-3


def load_ann(
    model: str, device: str = "auto", dtype: str = "float32", any_task: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The original model and its tokenizer. Raises `FasError` for a missing folder, or what is no causal language model
    (``any_task``: nor any other with a head)."""
    _, cls = original_class_of(model, any_task)
    with reading(model):
        check_saved(Path(resolve(model)))
    return _load(model, device, dtype, cls)


def original_class_of(model: str, any_task: bool = False) -> tuple[Any, Any]:
    """Configuration of a model that was not converted, and the class that loads it; raises as `load_ann` does."""
    config = original_config(model)
    cls = auto_class_of(config)
    if cls is not None and (cls is AutoModelForCausalLM or any_task):
        return config, cls
    told = (
        f"{model} is no causal language model but {', '.join(config.architectures or ['of an unnamed architecture'])}"
    )
    if getattr(config, "is_encoder_decoder", False):
        raise FasError(
            f"{told}; no command has a task for encoders with decoders, fas.prepare and fas.convert in Python do"
        )
    tasks = " or ".join(_TASKS_OF.get(cls, ("text-classification", "sst2")))
    raise FasError(f"{told}; say what it is for, such as --task {tasks} (fas convert --help lists tasks)")


def load_seeing(
    model: str, device: str = "auto", dtype: str = "float32", wanted: Any = AutoModelForImageTextToText
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The original image-text-to-text model (or what else is ``wanted``) and its processor. Raises `FasError` for any other."""
    config = config_of(model)
    if auto_class_of(config) is not wanted:
        kind = (
            "image-text-to-text model"
            if wanted is AutoModelForImageTextToText
            else "model that compares images with texts"
        )
        raise FasError(f"{model} is no {kind} that FAS knows: its architectures are {config.architectures or []}")
    need_pillow()
    ann, processor = load_ann(model, device, dtype, any_task=True)
    return ann, cast(ProcessorMixin, processor)


def need_pillow() -> None:
    """Raises `FasError` where images cannot be read."""
    if importlib.util.find_spec("PIL") is None:
        raise FasError(f"images need Pillow, which is not installed; {with_extra('vision')}")


def original_config(model: str) -> Any:
    """The configuration of a model that was not converted; raises `FasError` for one that was, or a missing folder."""
    config = config_of(model)
    if getattr(config, "quantization_config", None) is not None:
        raise FasError(f"{model} is quantized or converted already; FAS starts from the original model")
    return config


def auto_class_of(config: Any) -> Any:
    """The class that loads a model as what it was saved as; None for a model without a head that FAS knows."""
    names = config.architectures or []
    comparing = AutoModelForZeroShotImageClassification._model_mapping.get(type(config), None)
    if comparing is not None and comparing.__name__ in names:
        return AutoModelForZeroShotImageClassification
    seeing = AutoModelForImageTextToText._model_mapping.get(type(config), None)
    if seeing is not None:  # GIT's class ends like a language model's; BLIP's for answers is none of these
        return AutoModelForImageTextToText if seeing.__name__ in names else None
    return next((cls for ending, cls in _HEADS.items() if any(name.endswith(ending) for name in names)), None)


def load_saved(place: Path | str, device: torch.device) -> PreTrainedModel:
    """A model that FAS saved, in fp32, as what it was saved as."""
    check_saved(Path(place))
    cls = auto_class_of(AutoConfig.from_pretrained(place))
    return cls.from_pretrained(place, dtype=torch.float32).to(device).eval()


def load_spiking(
    model: str, device: str = "auto", dtype: str | None = None, any_task: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A converted model and its tokenizer; never the ANN: raises `CheckpointError` unless ``model`` holds neurons, and
    `FasError` if it is no causal language model, unless ``any_task`` will do."""
    cls = auto_class_of(spiking_config_of(model))
    if cls is not AutoModelForCausalLM and not any_task:
        names = config_of(model).architectures
        hint = "; fas generate takes it with --image" if cls is AutoModelForImageTextToText else ""
        raise FasError(f"{model} is no causal language model but {', '.join(names or ['of an unknown class'])}{hint}")
    loaded, tokenizer = _load(model, device, dtype, cls)
    if (stage := loaded.config.quantization_config.stage) != "snn":
        raise CheckpointError(
            f"{model} is a {stage.upper()} model, which has no spikes yet; make the SNN of it in Python: fas.convert(model), "
            "then save_pretrained"
        )
    if not any(isinstance(module, Site) for module in loaded.modules()):
        raise CheckpointError(f"{model} says that it is converted, but loaded without neurons; upgrade fas-snn")
    return loaded, tokenizer


def spiking_config_of(model: str) -> Any:
    """The configuration of a converted model; raises `CheckpointError` for any other, `FasError` for a missing folder."""
    config = config_of(model)
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


def config_of(model: str) -> Any:
    """The configuration at ``model``; raises `FasError` for a missing folder or one without."""
    place = resolve(model)
    path = Path(place)
    looks_local = path.exists() or place.startswith((".", "/", "~")) or place.count("/") != 1
    if looks_local and not (path / "config.json").exists():
        raise FasError(f"{model} is no folder with a config.json (and no hub id, which reads owner/name)")
    return configuration(model, place)


def _load(
    model: str, device: str, dtype: str | None, cls: Any = AutoModelForCausalLM
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    loaded, tokenizer, missing = loaded_with(model, device, dtype, cls, {})
    if missing:  # transformers would go on with random weights
        raise CheckpointError(f"{model} lacks {len(missing)} weights, first {min(missing)}")
    reader = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor, which may read images only
    words = len(reader) if hasattr(reader, "__len__") else 0
    rows = _vocabulary(loaded)
    if rows is not None and words > rows:
        raise CheckpointError(
            f"{model} has a tokenizer of {words} words and a model of {rows}: they do not belong together; put the model's own "
            "tokenizer beside it, or resize_token_embeddings and save"
        )
    return loaded, tokenizer


def _vocabulary(model: PreTrainedModel) -> int | None:
    """Rows of the embedding of tokens; None where there is none."""
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return None
    return len(weight) if weight.ndim == 2 and hasattr(model.config.get_text_config(), "vocab_size") else None


_TOKENIZER_FILES = "put the original model's tokenizer.json and tokenizer_config.json beside config.json"


def reader_of(place: str | Path, cls: Any = AutoTokenizer) -> Any:
    """The tokenizer (or processor ``cls``) of a checkpoint. Raises `CheckpointError` where it has no words: of a folder without
    tokenizer transformers makes one that knows special tokens only, and reads every text as unknown."""
    try:
        with reading(place):
            reader = cls.from_pretrained(place, trust_remote_code=False)
    except FasError as error:
        if "instantiate the backend tokenizer" not in str(error):
            raise
        raise CheckpointError(f"{place} has no tokenizer; {_TOKENIZER_FILES}") from error
    tokenizer = getattr(reader, "tokenizer", reader)
    if tokenizer is not None and hasattr(tokenizer, "all_special_tokens"):
        words = len(tokenizer) - len(set(tokenizer.all_special_tokens))
        if words <= 0:
            raise CheckpointError(
                f"{place} has no tokenizer: what was found knows {len(tokenizer)} special tokens and no word; "
                f"{_TOKENIZER_FILES}"
            )
    return reader


def loaded_with(
    model: str, device: str, dtype: str | None, cls: Any, more: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Model, tokenizer (or the processor of images and text), and the names of weights that the checkpoint lacks."""
    place = resolve(model)
    target = pick_device(device)
    with reading(model, place):
        _check_index(place)
        tokenizer: Any = reader_of(place, READERS.get(cls, AutoTokenizer))
        loaded, found = cls.from_pretrained(place, dtype=dtype or "auto", output_loading_info=True, **more)
        loaded = loaded.to(target).eval()
    refuse_leftovers(loaded, found["unexpected_keys"], model)
    require_finite(loaded, model)
    return loaded, tokenizer, list(found["missing_keys"])


def _check_index(place: str) -> None:
    """Refuse a local index of weights that leaves its folder, or is none, and weights that Git has not fetched."""
    for file in Path(place).glob("*.safetensors"):
        refuse_pointer(file)
    index = Path(place) / SAFE_WEIGHTS_INDEX_NAME
    if index.exists() and not (Path(place) / SAFE_WEIGHTS_NAME).exists():
        indexed(index)
