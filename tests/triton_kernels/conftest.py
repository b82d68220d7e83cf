"""Fixtures of the tests on Triton."""

from __future__ import annotations

import pytest

from codecllm_ops.format.weight_formats import FORMATS, WeightFormat
from triton_kernels.other_formats import OTHER_FORMATS


@pytest.fixture(params=OTHER_FORMATS, ids=lambda fmt: fmt.name)
def other_format(request, monkeypatch) -> WeightFormat:
    """Known to the package during the test."""
    monkeypatch.setitem(FORMATS, request.param.name, request.param)
    return request.param
