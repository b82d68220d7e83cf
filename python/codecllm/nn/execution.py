"""How compressed modules compute: an object that each of them holds.

A memory mode is one more Execution. Modules, faces and loaders pass it on and never ask which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from .ops import Coded, decode, decode_linear, decode_rows


@dataclass(frozen=True, eq=False)
class Execution:
    """One way to multiply with a coded weight.

    Attributes:
        name: what users call it.
        linear: x [..., K], operand, bias [N] of x's dtype or None -> [..., N] of x's dtype.
        rows: ids [...], operand, dtype -> [..., K] of `dtype`.
    """

    name: str
    linear: Callable[[torch.Tensor, Coded, torch.Tensor | None], torch.Tensor]
    rows: Callable[[torch.Tensor, Coded, torch.dtype], torch.Tensor]

    def __reduce__(self) -> tuple[Callable[[str], Execution], tuple[str]]:
        return named, (self.name,)  # there is one of each: copies are compared with `is`


def _decode_then_multiply(
    x: torch.Tensor, operand: Coded, bias: torch.Tensor | None
) -> torch.Tensor:
    return F.linear(x, decode(operand, x.dtype), bias)


def _multiply_coded(x: torch.Tensor, operand: Coded, bias: torch.Tensor | None) -> torch.Tensor:
    if x.dtype is torch.float64:  # no kernel accumulates in it
        return _decode_then_multiply(x, operand, bias)
    return decode_linear(x, operand, bias)


FUSED = Execution("fused", _multiply_coded, decode_rows)
"""Decodes inside the matmul; results differ from the dense layer's by the order of summation.
float64 is decoded first."""

EXACT = Execution("exact", _decode_then_multiply, decode_rows)
"""Decodes, then F.linear: equal to the dense layer; a dense copy lives as long as the call."""

_ALL = {e.name: e for e in (FUSED, EXACT)}


def named(name: str) -> Execution:
    """The execution of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in _ALL:
        raise ValueError(f"execution {name!r} is unknown; known: {', '.join(_ALL)}")
    return _ALL[name]


def chosen(execution: Any) -> Execution:
    """`execution`, or the one of that name."""
    return execution if isinstance(execution, Execution) else named(execution)


def exact_or_fused(exact: bool) -> Execution:
    """What the flag `exact` of the public functions means."""
    return EXACT if exact else FUSED
