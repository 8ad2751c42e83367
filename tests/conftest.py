"""One thread (tests run beside each other), no progress bars; the same random numbers whichever tests ran before."""

import random
from collections import Counter

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


LONG = (
    "test_zero_shot", "test_scale", "test_ablate", "test_tune", "test_recipes", "test_from_disk", "test_pipeline",
    "test_classification", "test_compare", "test_visual", "test_image_classes", "test_packaging",
)  # fmt: skip
"""Files of few tests that take long: begun first, so that no process waits for the other in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order in which processes take them: `LONG` ones, then those of most tests."""
    counts = Counter(item.path for item in items)
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: (places.get(item.path.stem, len(LONG)), -counts[item.path]))
