"""Teaches transformers the ``quant_method`` "fas", without importing anything heavy before it is needed.

``import fas`` alone must be cheap (``fas --help``), yet after it every ``from_pretrained`` must know converted folders. So
light entries are registered as soon as transformers' registry exists, and they load the real classes when first used.
"""

from __future__ import annotations

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


def register() -> None:
    """Register now, or when transformers is imported; doing it again changes nothing."""
    if _REGISTRY in sys.modules:
        _fill(sys.modules[_REGISTRY])
    else:
        wrapt.register_post_import_hook(_fill, _REGISTRY)
