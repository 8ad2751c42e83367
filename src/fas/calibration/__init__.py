"""Stage 2: coarse, fine, losses, the layer-by-layer driver."""

from fas.calibration.driver import CalibrationOptions, LayerReport, calibrate

__all__ = ["CalibrationOptions", "LayerReport", "calibrate"]
