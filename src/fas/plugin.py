"""Teaches transformers the ``quant_method`` "fas", without importing anything heavy before it is needed.

``import fas`` alone must be cheap (``fas --help``), yet after it every ``from_pretrained`` must know converted folders. So
light entries are registered as soon as transformers' registry exists, and they load the real classes when first used.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import wrapt

_REGISTRY = "transformers.quantizers.auto"


class _Config:
    """Stands in the registry for `fas.conversion.description.FasQuantizationConfig`."""

    @staticmethod
    def from_dict(values: dict[str, Any], **kwargs: Any) -> Any:
        from fas.conversion.description import FasQuantizationConfig

        return FasQuantizationConfig.from_dict(values, **kwargs)


def _quantizer(config: Any, **kwargs: Any) -> Any:
    """Stands in the registry for `fas.conversion.quantizer.FasQuantizer`."""
    from fas.conversion.quantizer import FasQuantizer

    return FasQuantizer(config, **kwargs)


def _fill(registry: ModuleType) -> None:
    registry.AUTO_QUANTIZATION_CONFIG_MAPPING["fas"] = _Config  # type: ignore[attr-defined]
    registry.AUTO_QUANTIZER_MAPPING["fas"] = _quantizer  # type: ignore[attr-defined]


def _renewing(save: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Around ``save_pretrained`` of a tokenizer: the manifest of a folder that has one takes down the new files."""
    saved = save(*args, **kwargs)
    folder = args[0] if args else kwargs.get("save_directory")
    if isinstance(folder, str | os.PathLike) and os.path.exists(os.path.join(folder, "fas_manifest.json")):
        from fas.conversion.manifest import renew_files

        renew_files(os.fspath(folder))
    return saved


def _with_its_neurons(load: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Around ``from_pretrained`` of models: a converted folder with a configuration that does not say so would lose its
    neurons."""
    config, place = kwargs.get("config"), args[0] if args else kwargs.get("pretrained_model_name_or_path")
    if (
        config is not None
        and isinstance(place, str | os.PathLike)
        and os.path.isfile(os.path.join(place, "config.json"))
    ):
        from fas.conversion.leftovers import refuse_plain_config

        refuse_plain_config(os.fspath(place), config)
    return load(*args, **kwargs)


def _wrap_models(module: ModuleType) -> None:
    wrapt.wrap_function_wrapper(module, "PreTrainedModel.from_pretrained", _with_its_neurons)


def _wrap(module: ModuleType) -> None:
    wrapt.wrap_function_wrapper(module, _SAVERS[module.__name__], _renewing)


_SAVERS = {
    "transformers.tokenization_utils_base": "PreTrainedTokenizerBase.save_pretrained",
    "transformers.processing_utils": "ProcessorMixin.save_pretrained",
    "transformers.image_processing_base": "ImageProcessingMixin.save_pretrained",
    "transformers.generation.configuration_utils": "GenerationConfig.save_pretrained",
}
"""Module and method that write what stands beside the weights of a folder."""


_wrapped: set[str] = set()


def register() -> None:
    """Register now, or when transformers is imported; doing it again changes nothing."""
    if not _wrapped:
        _wrapped.update(_SAVERS)
        for name in _SAVERS:
            wrapt.register_post_import_hook(_wrap, name)  # at once where it is imported already
        wrapt.register_post_import_hook(_wrap_models, "transformers.modeling_utils")
    if _REGISTRY in sys.modules:
        _fill(sys.modules[_REGISTRY])
    else:
        wrapt.register_post_import_hook(_fill, _REGISTRY)
