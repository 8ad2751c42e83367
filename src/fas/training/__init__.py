"""Stage 1, of the whole model or a block at a time, and tuning through time."""

from fas.training.block import BlockOptions, BlockReport
from fas.training.blocks import train_blocks
from fas.training.blocks_from_disk import prefix_search_from_disk, train_blocks_folder
from fas.training.lora import Lora, require_peft
from fas.training.stage1 import Stage1Options, Stage1Trainer, batch_for, fine_tune
from fas.training.through_time import tune_through_time

__all__ = [
    "BlockOptions",
    "BlockReport",
    "Lora",
    "Stage1Options",
    "Stage1Trainer",
    "batch_for",
    "fine_tune",
    "prefix_search_from_disk",
    "require_peft",
    "train_blocks",
    "train_blocks_folder",
    "tune_through_time",
]
