"""Stage 2: coarse, fine, losses, the layer-by-layer driver; and what temporal error is left."""

from fas.calibration.block import LayerReport
from fas.calibration.diagnosis import Diagnosis, diagnose
from fas.calibration.driver import calibrate
from fas.calibration.from_disk import calibrate_folder
from fas.calibration.options import CalibrationOptions

__all__ = ["CalibrationOptions", "Diagnosis", "LayerReport", "calibrate", "calibrate_folder", "diagnose"]
