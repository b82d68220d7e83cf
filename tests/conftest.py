"""Settings for the whole suite: the same examples in every run, no clock in a test."""

import pytest
import torch
from hypothesis import settings

from cases import INTERPRETING
from model_cases import folder, ids, make_checkpoint, tied  # noqa: F401  (fixtures)

settings.register_profile("codecllm", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("codecllm")

# The matrices are small: threads that wait for each other would take ten times as long.
# tests/ops/test_threads.py is about more of them.
torch.set_num_threads(1)


@pytest.fixture
def threads():
    """Sets the number of threads; puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


if INTERPRETING:
    from triton_kernels import interpreter

    interpreter.round_to_bfloat16()


def why_no_gpu_tests() -> str | None:
    import codecllm_ops

    if not torch.cuda.is_available():
        return "no GPU here"
    info = codecllm_ops.backend_info()
    return None if info["cuda"] != "reference" else f"no kernels: {info['missing']}"


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := why_no_gpu_tests()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
