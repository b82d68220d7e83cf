"""Benchmarks report verified kernels on a named device at a named commit, and no host."""

import platform
import subprocess
from pathlib import Path

import pytest
import torch

import codecllm_ops


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown CPU"


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def device() -> dict:
    info = codecllm_ops.backend_info()
    return {
        "device": cpu_model(),
        "threads": torch.get_num_threads(),
        "backend": info["cpu"],
        "isa": info.get("cpu_isa", "none"),
        "torch": torch.__version__,
        "commit": commit(),
    }


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    machine_info.update(device())


@pytest.fixture
def threads():
    """Sets the number of threads for one benchmark."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
