"""Pair registers to numbers and to matrix operands in Triton. Exact: no rounding of weights."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fragment(pairs, TOGETHER: tl.constexpr):
    """Halves of a group's pairs, uint32 [32 * T], as rows and columns: uint16 [16 * T, 16].

    On NVIDIA GPUs nothing moves: the result is an A operand of m16n8k16 already. A product may add
    its columns in any order. Before 3.8 Triton wants four of a lane side by side:

    Args:
        TOGETHER: columns 2t, 2t + 1, 2t + 8, 2t + 9 stand at 4t .. 4t + 3.
    """
    u0, u1, u2, u3 = pairs
    tiles: tl.constexpr = u0.shape[0] // 32
    left, right = tl.join(_halves(u0), _halves(u1)), tl.join(_halves(u2), _halves(u3))
    both = tl.reshape(tl.join(left, right), (tiles, 8, 4, 2, 2, 2))  # g, t, of pair, row, column
    both = tl.permute(both, (0, 4, 1, 2, 5, 3) if TOGETHER else (0, 4, 1, 5, 2, 3))
    return tl.reshape(both, (16 * tiles, 16))


@triton.jit
def x_fragment(x0, x1, TOGETHER: tl.constexpr):
    """Pairs of x, uint32 [4 * N]: columns 2t, 2t + 1 and 2t + 8, 2t + 9 of row n at 4 * n + t.
    Returns uint16 [16, N], a B operand of m16n8k16."""
    n: tl.constexpr = x0.shape[0] // 4
    both = tl.reshape(tl.join(_halves(x0), _halves(x1)), (n, 4, 2, 2))  # t, of pair, half
    both = tl.permute(both, (1, 3, 2, 0) if TOGETHER else (3, 1, 2, 0))
    return tl.reshape(both, (16, n))


@triton.jit
def _halves(u):
    return tl.join((u & 0xFFFF).to(tl.uint16), (u >> 16).to(tl.uint16))


@triton.jit
def to_float(half, low, FMT: tl.constexpr):
    """Words to float32.

    Args:
        half: the word, or its high half, without the format's flip.
        low: its low half, where words have 32 bits; else anything.
    """
    bits = half.to(tl.uint32)
    if FMT.exponent == 0:  # offset binary: put behind a one with unit 1, then take both off
        value = (bits | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + FMT.flip)
    elif FMT.exponent == 8:  # float32, or its first bits
        bits = bits << 16
        if FMT.word_bits == 32:
            bits = bits | low.to(tl.uint32)
        value = bits.to(tl.float32, bitcast=True)
    elif FMT.exponent == 5 and FMT.has_inf:
        value = _float16(half, FMT).to(tl.float32)
    else:
        value = _small_float(bits, FMT)
    return value


@triton.jit
def _float16(half, FMT: tl.constexpr):
    """Floats that are the first bits of a float16."""
    tl.static_assert(FMT.mantissa <= 10)
    return (half << (10 - FMT.mantissa)).to(tl.float16, bitcast=True)


@triton.jit
def _small_float(bits, FMT: tl.constexpr):
    """Floats of fewer exponents than float32, subnormals too: as float32 they are 2^-rebias of
    their value."""
    rebias: tl.constexpr = 128 - (1 << (FMT.exponent - 1))
    at: tl.constexpr = FMT.exponent + FMT.mantissa
    sign: tl.constexpr = 1 << at
    magnitude = bits & (sign - 1)
    as_float = (magnitude << (23 - FMT.mantissa)).to(tl.float32, bitcast=True)
    value = as_float * (2.0**rebias)
    signed = value.to(tl.uint32, bitcast=True) | (
        (bits & sign) << (31 - FMT.exponent - FMT.mantissa)
    )
    if FMT.has_inf:
        special = magnitude >= (sign - (1 << FMT.mantissa))
        signed = tl.where(special, signed | 0x7F800000, signed)
    else:  # the largest magnitude is NaN
        signed = tl.where(magnitude == sign - 1, signed | 0x7FC00000, signed)
    return signed.to(tl.float32, bitcast=True)


@triton.jit
def to_operand(half, PRODUCT: tl.constexpr, FMT: tl.constexpr):
    """Halves to bfloat16 or float16, of formats whose values that dtype holds exactly."""
    if FMT.exponent == 8 and PRODUCT == tl.bfloat16:
        tl.static_assert(FMT.mantissa == 7)
        operand = half.to(PRODUCT, bitcast=True)
    elif FMT.exponent == 5 and FMT.has_inf and PRODUCT == tl.float16:
        operand = _float16(half, FMT)
    else:
        operand = to_float(half, half, FMT).to(PRODUCT)
    return operand
