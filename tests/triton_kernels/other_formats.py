"""Formats that the package does not have: what they need follows from their entries."""

from __future__ import annotations

import math

import numpy as np
import torch

from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.codec.operand import Operand
from codecllm_ops.codec.rans import reference
from codecllm_ops.format.weight_formats import Float, Integer, WeightFormat

OTHER_FORMATS = [
    WeightFormat(201, "int8 all coded", torch.int8, 8, coded_shift=0, coded_bits=8, flip=0x80),
    WeightFormat(202, "e3m4", torch.uint8, 8, coded_shift=4, coded_bits=3, kind=Float(3, 4)),
    WeightFormat(203, "e3m4fn", torch.uint8, 8, coded_shift=4, coded_bits=3,
                 kind=Float(3, 4, has_inf=False)),
]  # fmt: skip


def every_word(fmt: WeightFormat) -> Operand:
    """A matrix [256, 1] of all words of an 8-bit format, in order."""
    words = np.arange(256, dtype=np.uint8)[:, None]
    head, stream, raw, index = reference.encode(words, fmt, tile_cols=16)
    return CodedMatrix.build(head, stream, raw, index, "cpu").operand


def values_of(fmt: WeightFormat) -> torch.Tensor:
    """What the words of `every_word` mean, float32 [256]."""
    if isinstance(fmt.kind, Integer):
        return torch.arange(256, dtype=torch.uint8).view(torch.int8).float()
    exponents, mantissas = 1 << fmt.kind.exponent, 1 << fmt.kind.mantissa
    bias, found = exponents // 2 - 1, []
    for e in range(exponents):
        for m in range(mantissas):
            normal = (m + mantissas) * 2.0 ** (e - bias)
            found.append((normal if e else m * 2.0 ** (1 - bias)) / mantissas)
    if fmt.kind.has_inf:
        found[-mantissas:] = [math.inf, *[math.nan] * (mantissas - 1)]
    else:
        found[-1] = math.nan
    return torch.tensor([*found, *(-v for v in found)])
