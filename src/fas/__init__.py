"""FAS: pre-trained transformers become spiking ones. Importing it teaches transformers to load converted folders."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fas.plugin import register

if TYPE_CHECKING:
    from fas.accounting import Ledger, ledger
    from fas.calibration import CalibrationOptions, Diagnosis, calibrate, calibrate_folder, diagnose
    from fas.config import SpikingConfig
    from fas.conversion import convert, prepare
    from fas.errors import FasError
    from fas.runtime.accelerated import accelerated
    from fas.runtime.adaptive import Adaptive, adaptive
    from fas.runtime.limit import memory_limit
    from fas.training import BlockOptions, train_blocks, train_blocks_folder

__version__ = "0.1.0"

__all__ = [
    "Adaptive",
    "BlockOptions",
    "CalibrationOptions",
    "Diagnosis",
    "FasError",
    "Ledger",
    "SpikingConfig",
    "accelerated",
    "adaptive",
    "calibrate",
    "calibrate_folder",
    "convert",
    "diagnose",
    "ledger",
    "memory_limit",
    "prepare",
    "train_blocks",
    "train_blocks_folder",
]

_HOMES = {
    "Adaptive": "fas.runtime.adaptive",
    "BlockOptions": "fas.training.block",
    "CalibrationOptions": "fas.calibration.driver",
    "Diagnosis": "fas.calibration.diagnosis",
    "FasError": "fas.errors",
    "Ledger": "fas.accounting.ledger",
    "SpikingConfig": "fas.config",
    "adaptive": "fas.runtime.adaptive",
    "calibrate": "fas.calibration.driver",
    "calibrate_folder": "fas.calibration.from_disk",
    "convert": "fas.conversion.verbs",
    "diagnose": "fas.calibration.diagnosis",
    "accelerated": "fas.runtime.accelerated",
    "ledger": "fas.accounting.ledger",
    "memory_limit": "fas.runtime.limit",
    "prepare": "fas.conversion.verbs",
    "train_blocks": "fas.training.blocks",
    "train_blocks_folder": "fas.training.blocks_from_disk",
}

register()


def __dir__() -> list[str]:
    """The public names, also those that are not loaded yet."""
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})


if not TYPE_CHECKING:  # type checkers would believe that there is every name

    def __getattr__(name: str) -> Any:
        """Public names load torch and transformers only when they are used."""
        if name not in _HOMES:
            raise AttributeError(f"module 'fas' has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
