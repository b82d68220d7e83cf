"""A layer, its streams, and equality of bits."""

from __future__ import annotations

import torch
from torch import nn

from codecllm.nn import STREAM_NAMES


def linear(rows=80, cols=96, bias=True, dtype=torch.bfloat16, seed=0):
    """Its weight has a value far below the others: an escape of rans, listed in fixed."""
    torch.manual_seed(seed)
    made = nn.Linear(cols, rows, bias=bias, dtype=dtype)
    if dtype == torch.bfloat16 and made.weight.numel():
        made.weight.data[0, 0] = 1e-30
    return made


def streams_of(module):
    return dict(zip(STREAM_NAMES, module.streams, strict=True))


def assert_bits_equal(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    view = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    assert torch.equal(a.contiguous().view(view), b.contiguous().view(view))
