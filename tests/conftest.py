"""One thread (tests run beside each other), no progress bars; the same random numbers whichever tests ran before."""

import random

import numpy as np
import pytest
import torch
import transformers
from hypothesis import settings

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

# a change fails for what it changed, not for an example that nobody has drawn before; those are for `make explore`
settings.register_profile("same", derandomize=True, deadline=None, max_examples=60, database=None)
settings.register_profile("explore", settings.get_profile("same"), derandomize=False, print_blob=True)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Each test draws what it would draw alone."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
