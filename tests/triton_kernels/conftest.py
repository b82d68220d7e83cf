"""Fixtures of the tests on Triton."""

from __future__ import annotations

import pytest

import codecllm_ops as ops
from codecllm_ops.format.weight_formats import FORMATS, WeightFormat
from triton_kernels.other_formats import OTHER_FORMATS


@pytest.fixture(params=OTHER_FORMATS, ids=lambda fmt: fmt.name)
def other_format(request, monkeypatch) -> WeightFormat:
    """Known to the package during the test."""
    monkeypatch.setitem(FORMATS, request.param.name, request.param)
    return request.param


@pytest.fixture
def triton_runs():
    """Ops run in Triton's interpreter, and no kernel reads or writes outside its tensors."""
    from triton_kernels.interpreter import accesses_checked  # needs Triton

    before = ops.use_backend("triton")
    with accesses_checked():
        yield
    ops.use_backend(before)


@pytest.fixture
def checked():
    before = ops.set_check(True)
    yield
    ops.set_check(before)


@pytest.fixture
def cut(monkeypatch):
    """Sets the choice that all kernels of a kind are launched with."""
    from codecllm_ops.ops.backends.triton import tune  # needs Triton

    def call(choice) -> None:
        monkeypatch.setattr(tune, "choose", lambda key, candidates, run: choice)

    return call
