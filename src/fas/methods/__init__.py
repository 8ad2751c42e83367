"""Conversions as others published them, over the same sites, neurons and runtime."""

from fas.methods.published import PublishedOptions, calibrate_as_published

__all__ = ["PublishedOptions", "calibrate_as_published"]
