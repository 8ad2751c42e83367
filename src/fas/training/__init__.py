"""Stage 1 on the Hugging Face Trainer."""

from fas.training.stage1 import Stage1Options, Stage1Trainer, fine_tune

__all__ = ["Stage1Options", "Stage1Trainer", "fine_tune"]
