"""Which instructions ``fas bench`` ran on: figures of one processor do not hold for another."""

from __future__ import annotations

import os
from typing import Any

import torch

from fas.neurons.native.build import architecture, library
from fas.neurons.native.decoding import lanes

LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that switch instruction sets off."""


def instruction_sets() -> dict[str, Any]:
    """What FAS's kernels were compiled for, what PyTorch's use, and what was switched off."""
    ours = {} if library() is None else {"compiled_for": architecture(), "compiled_lanes": lanes()}
    limits = {name.lower(): os.environ[name] for name in LIMITS if os.environ.get(name)}
    return ours | {"pytorch": torch.backends.cpu.get_cpu_capability()} | limits
