"""What kernels know of a weight format at compile time, from its entry."""

from __future__ import annotations

import functools

import torch

from ....format.weight_formats import WeightFormat
from .arguments import Format

# Exponent and mantissa of the dtypes that activations have.
_BITS = {torch.float32: (8, 23), torch.bfloat16: (8, 7), torch.float16: (5, 10)}


@functools.cache
def format_of(fmt: WeightFormat, scale_bits: int = 0, left: bool = False) -> Format:
    """`FMT` of the kernels.

    Args:
        scale_bits, left: of the coding; predictor `left`.
    """
    planes = [p for p in fmt.planes if not p.low_half]
    exponent, mantissa, has_inf = _kind(fmt)
    return Format(
        fmt.word_bits, fmt.flip, fmt.coded_bits, fmt.coded_shift,
        tuple(n for p in planes for n in (p.mask, p.bits)),
        exponent, mantissa, has_inf, scale_bits, left,
    )  # fmt: skip


def holds(dtype: torch.dtype, fmt: WeightFormat) -> bool:
    """Whether a dtype of activations has every value of a format."""
    exponent, mantissa, _ = _kind(fmt)
    bits, fraction = _BITS[dtype]
    if not exponent:
        return fmt.word_bits <= fraction + 2  # -2^(word_bits - 1) is a power of two
    return exponent <= bits and mantissa <= fraction


def _kind(fmt: WeightFormat) -> tuple[int, int, bool]:
    """Exponent and mantissa of a float, and whether it has infinities; 0, 0 of an integer."""
    if not fmt.dtype.is_floating_point:
        return 0, 0, False
    return fmt.coded_bits, fmt.word_bits - 1 - fmt.coded_bits, fmt.dtype != torch.float8_e4m3fn
