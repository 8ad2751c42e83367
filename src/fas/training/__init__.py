"""Stage 1, and tuning through time, on the Hugging Face Trainer."""

from fas.training.lora import Lora, require_peft
from fas.training.stage1 import Stage1Options, Stage1Trainer, batch_for, fine_tune
from fas.training.through_time import tune_through_time

__all__ = [
    "Lora",
    "Stage1Options",
    "Stage1Trainer",
    "batch_for",
    "fine_tune",
    "require_peft",
    "tune_through_time",
]
