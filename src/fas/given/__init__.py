"""What a user hands to a verb, read once and in one place: models, configurations, options, batches."""

from fas.given.batches import Batches, batch_for, batches_for
from fas.given.kinds import class_from, config_from, device_from, folder_from, model_from, options_from

__all__ = [
    "Batches",
    "batch_for",
    "batches_for",
    "class_from",
    "config_from",
    "device_from",
    "folder_from",
    "model_from",
    "options_from",
]
