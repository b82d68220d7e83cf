"""Which 15 exponents in a row become codes."""

from __future__ import annotations

import numpy as np
import torch

from ...format.fixed import FIXED_CODES, MAX_FIXED_BASE

SAMPLED_ROWS = 64
"""Of a segment. A sample, so that a matrix is read once, and rows, so that the choice is the same
from every coding. A window has room to spare: normal weights fill 13 of its 15 exponents."""


def sampled_rows(rows: int) -> np.ndarray:
    """Numbers of evenly spaced rows, int64."""
    n = min(SAMPLED_ROWS, rows)
    return np.arange(n, dtype=np.int64) * rows // max(n, 1)


def choose_window(words: torch.Tensor) -> int:
    """The base of the window that has the most words; the first of the best.

    Args:
        words: bfloat16, any shape, any device.
    """
    # Zeros and subnormals have exponent 0, which is in no window.
    exponents = words.view(torch.int16).flatten().to(torch.int32) >> 7 & 0xFF
    counts = torch.bincount(exponents, minlength=256).cpu().numpy()
    up_to = np.cumsum(counts)
    bases = np.arange(MAX_FIXED_BASE + 1)
    return int(np.argmax(up_to[bases + FIXED_CODES] - up_to[bases]))
