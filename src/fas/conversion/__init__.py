"""ANN → QCFS model → SNN: finds sites, swaps modules, saves and loads."""

from fas.conversion.description import FasQuantizationConfig, describe
from fas.conversion.verbs import convert, prepare

__all__ = ["FasQuantizationConfig", "convert", "describe", "prepare"]
