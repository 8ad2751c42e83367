"""Stage 2: coarse, fine, losses, the layer-by-layer driver; and what temporal error is left."""

from fas.calibration.diagnosis import Diagnosis, diagnose
from fas.calibration.driver import CalibrationOptions, LayerReport, calibrate
from fas.calibration.from_disk import calibrate_folder

__all__ = ["CalibrationOptions", "Diagnosis", "LayerReport", "calibrate", "calibrate_folder", "diagnose"]
