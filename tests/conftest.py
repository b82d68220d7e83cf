"""Settings for the whole suite: the same examples in every run, no clock in a test."""

from hypothesis import settings

from model_cases import folder, ids, make_checkpoint, tied  # noqa: F401  (fixtures)

settings.register_profile("codecllm", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("codecllm")
