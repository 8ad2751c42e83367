"""Conversions as others published them, over the same sites, neurons and runtime; a new one is a file that registers itself."""

from fas.methods import cos, direct, integers, las, parallel, phase, snn_calibration, srp, sta, trained
from fas.methods.method import Method, built, depth_of, method_named, methods, register
from fas.methods.published import PublishedOptions, calibrate_as_published

BUILT_IN = (cos, direct, integers, las, parallel, phase, snn_calibration, srp, sta, trained)
"""Their files, which register them."""

__all__ = [
    "BUILT_IN",
    "Method",
    "PublishedOptions",
    "built",
    "calibrate_as_published",
    "depth_of",
    "method_named",
    "methods",
    "register",
]
