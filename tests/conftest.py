"""One thread (tests run beside each other), no progress bars."""

import torch
import transformers

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
