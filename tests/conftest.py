"""Settings for the whole suite: the same examples in every run, no clock in a test."""

import torch
from hypothesis import settings

from model_cases import folder, ids, make_checkpoint, tied  # noqa: F401  (fixtures)

settings.register_profile("codecllm", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("codecllm")

# The matrices are small: threads that wait for each other would take ten times as long.
# tests/ops/test_threads.py is about more of them.
torch.set_num_threads(1)
