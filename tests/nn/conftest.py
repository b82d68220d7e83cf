"""Modules must not care what their streams hold: everything here runs in both codings."""

from __future__ import annotations

import pytest

from codecllm.nn.coding import VARIABLE


@pytest.fixture(autouse=True, params=["fixed", "rans"])
def coding(request, monkeypatch):
    """What "auto" means while a test runs."""
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param
