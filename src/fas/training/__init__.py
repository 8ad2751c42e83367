"""Stage 1, and tuning through time, on the Hugging Face Trainer."""

from fas.training.stage1 import Stage1Options, Stage1Trainer, fine_tune
from fas.training.through_time import tune_through_time

__all__ = ["Stage1Options", "Stage1Trainer", "fine_tune", "tune_through_time"]
