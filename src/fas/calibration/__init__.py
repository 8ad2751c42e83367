"""Stage 2: coarse, fine, losses, the layer-by-layer driver; and what temporal error is left."""

from fas.calibration.diagnosis import Diagnosis, diagnose
from fas.calibration.driver import CalibrationOptions, LayerReport, calibrate

__all__ = ["CalibrationOptions", "Diagnosis", "LayerReport", "calibrate", "diagnose"]
