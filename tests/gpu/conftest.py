"""Backends that the GPU tests run on, one after the other."""

from __future__ import annotations

import pytest

import codecllm_ops as ops


def available(backend: str) -> bool:
    before = ops.backend_info()["requested"]
    try:
        ops.use_backend(backend)
    except ops.BackendUnavailableError:
        return False
    ops.use_backend(before)
    return True


@pytest.fixture(autouse=True, params=["cuda", "triton"])
def backend(request):
    if not available(request.param):
        pytest.skip(f"no {request.param} backend here")
    before = ops.use_backend(request.param)
    assert ops.backend_info()["cuda"] == request.param
    yield
    ops.use_backend(before)


@pytest.fixture
def checked(backend):
    before = ops.set_check(True)
    yield
    ops.set_check(before)
