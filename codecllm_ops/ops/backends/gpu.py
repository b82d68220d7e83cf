"""What CUDA C++ and Triton want of a GPU alike."""

from __future__ import annotations

import functools

import torch

MIN_ARCH = (7, 5)  # of an NVIDIA GPU
NO_GPU = "torch sees no GPU"


@functools.cache
def too_old(index: int | None) -> str | None:
    """Why no kernels of ours run on a GPU; None if they do."""
    if torch.version.hip:
        return None
    have = torch.cuda.get_device_capability(index)
    if have >= MIN_ARCH:
        return None
    return (
        f"{torch.cuda.get_device_name(index)} is sm_{have[0]}{have[1]}, the kernels need "
        f"sm_{MIN_ARCH[0]}{MIN_ARCH[1]} or later: pure torch decodes on it"
    )
