"""What kernels know of a weight format at compile time, from its entry."""

from __future__ import annotations

import torch

from ....format.weight_formats import Float, WeightFormat
from .arguments import Format

# Of the dtypes that activations have.
_FLOATS = {
    torch.float32: Float(8, 23),
    torch.bfloat16: Float(8, 7),
    torch.float16: Float(5, 10),
}


def format_of(fmt: WeightFormat, step: int, code: object) -> Format:
    """`FMT` of the kernels, with what the coding adds."""
    planes = [p for p in fmt.planes if not p.low_half]
    kind = fmt.kind if isinstance(fmt.kind, Float) else Float(0, 0, has_inf=False)
    return Format(
        fmt.word_bits, fmt.flip, fmt.coded_bits, fmt.coded_shift,
        tuple(n for p in planes for n in (p.mask, p.bits)),
        kind.exponent, kind.mantissa, kind.has_inf, step, code,
    )  # fmt: skip


def holds(dtype: torch.dtype, fmt: WeightFormat) -> bool:
    """Whether a dtype of activations has every value of a format."""
    to = _FLOATS[dtype]
    if isinstance(fmt.kind, Float):
        return fmt.kind.exponent <= to.exponent and fmt.kind.mantissa <= to.mantissa
    return fmt.word_bits <= to.mantissa + 2  # -2^(word_bits - 1) is a power of two
