"""Assertions that the tests share."""

from __future__ import annotations

import numpy as np
import torch

from cases import to_words

# Largest relative error of rounding to nearest: 2^-(bits of the significand).
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# Half of the smallest subnormal.
TINY = {torch.float32: 2.0**-150, torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25}


def assert_same_words(actual, expected) -> None:
    """Equal bit by bit; says where the first difference is."""
    if isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype
        actual, expected = to_words(actual), to_words(expected)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    different = np.argwhere(actual != expected)
    if len(different):
        at = tuple(different[0].tolist())
        raise AssertionError(
            f"{len(different)} of {actual.size} words differ, the first at {at}: "
            f"{int(actual[at]):#x} instead of {int(expected[at]):#x}"
        )


def assert_same_coded(actual, expected) -> None:
    """Two coded matrices with the same bytes in all four tensors."""
    for name in ("stream", "raw", "index", "head"):
        a, b = getattr(actual, name), getattr(expected, name)
        assert a.dtype == b.dtype and torch.equal(a, b), f"{name} differs"


def linear_in_float64(x, weight, scale=None, bias=None):
    """x W^T + bias in float64, and the sum of the magnitudes of everything added."""
    w = weight.double()
    if scale is not None:
        w = w * (scale.double() if scale.numel() == 1 else scale.double()[:, None])
    y, magnitude = x.double() @ w.T, x.double().abs() @ w.abs().T
    if bias is not None:
        y, magnitude = y + bias.double(), magnitude + bias.double().abs()
    return y, magnitude


def linear_tolerance(x, weight, scale=None, bias=None, *, rounded_weight=False):
    """How far x W^T + bias in float32, rounded to x's dtype, may be from exact. [..., N].

    n float32 additions and multiplications in any order are off by at most n u / (1 - n u) times
    the sum of the magnitudes, u = 2^-24: K products, K sums, scale, bias. Instructions for bfloat16
    flush subnormal operands and sums to zero: 2^-126 each. The result is rounded once to x's dtype.

    Args:
        rounded_weight: as where the library multiplies: the (scaled) weight is rounded to x's dtype
            before, and the sum is once more before the bias is added.
    """
    y, magnitude = linear_in_float64(x, weight, scale, bias)
    k, unit, tiny = x.shape[-1], UNIT[x.dtype], TINY[x.dtype]
    n = 2 * k + 2
    error = n * UNIT[torch.float32] / (1 - n * UNIT[torch.float32]) * magnitude
    factor = 1.0 if scale is None else float(scale.abs().max())
    x_sum = x.double().abs().sum(-1, keepdim=True)
    w_sum = factor * weight.double().abs().sum(-1)
    error = error + 2.0**-126 * (factor * x_sum + w_sum + 2 * k)
    if rounded_weight:
        total = y if bias is None else y - bias.double()
        error = error + 1.01 * (unit * magnitude + tiny * x_sum)
        error = error + 1.01 * (unit * total.abs() + tiny)
    return error + unit * (y.abs() + error) + tiny


def assert_linear_close(actual, x, weight, scale=None, bias=None, *, rounded_weight=False):
    """actual = x W^T + bias within linear_tolerance."""
    y, _ = linear_in_float64(x, weight, scale, bias)
    assert actual.dtype == x.dtype and actual.shape == y.shape
    error = (actual.double() - y).abs()
    allowed = linear_tolerance(x, weight, scale, bias, rounded_weight=rounded_weight)
    wrong = ~(error <= allowed)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} outputs are off, the first at {at}: "
            f"{float(actual[at])} instead of {float(y[at])}, allowed are {float(allowed[at]):.3g}"
        )
