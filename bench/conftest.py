"""Benchmarks report verified kernels on a named device at a named commit, and no host."""

import pytest
import torch

from codecllm.bench.machine import machine

_NAMED = ("device", "threads", "backend", "isa", "torch", "commit")


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    found = machine()
    machine_info.update({name: found[name] or "unknown" for name in _NAMED})


@pytest.fixture
def threads():
    """Sets the number of threads for one benchmark."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
