"""ANN → QCFS model → SNN: finds sites, swaps modules, saves and loads."""

from fas.convert.description import FasQuantizationConfig, describe
from fas.convert.prepare import convert, prepare
from fas.convert.quantizer import register_with_transformers

__all__ = ["FasQuantizationConfig", "convert", "describe", "prepare", "register_with_transformers"]
