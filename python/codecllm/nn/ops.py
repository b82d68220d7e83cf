"""The ops as modules call them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import codecllm_ops  # noqa: F401  (registers the ops)
from codecllm_ops.ops import calls, registry

Coded = Sequence[Any]
"""An Operand, or a plain tuple in its order, which is made in a third of the time."""

decode = calls.decode
"""Operand, dtype -> [rows, cols] of `dtype`; None: the coded bits."""

decode_linear = calls.linear
"""x [..., cols], operand, bias [rows] of x's dtype or None -> [..., rows]."""

decode_rows = calls.rows
"""ids [...], operand, dtype -> [..., cols] of `dtype`."""


def checking() -> bool:
    """Whether set_check() is on: ops wait for the GPU, and so may others."""
    return registry.checking()
