"""Pair registers to numbers and to matrix operands in Triton. Exact: no rounding of weights."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fragment(u0, u1, u2, u3, TOGETHER: tl.constexpr):
    """Halves of a group's pairs, uint32 [32 * T], as rows and columns: uint16 [16 * T, 16].

    On NVIDIA GPUs nothing moves: the result is an A operand of m16n8k16 already. A product may add
    its columns in any order. Before 3.8 Triton wants four of a lane side by side:

    Args:
        TOGETHER: columns 2t, 2t + 1, 2t + 8, 2t + 9 stand at 4t .. 4t + 3.
    """
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
def to_float(half, low, BITS: tl.constexpr, SHIFT: tl.constexpr, FLIP: tl.constexpr,
             LOW: tl.constexpr):  # fmt: skip
    """Words to float32. A float's word is sign, `BITS` of exponent, `SHIFT` of mantissa.

    Args:
        half: the word, or its high half, without `FLIP`.
        low: its low half, with LOW; else anything.
    """
    bits = half.to(tl.uint32)
    if FLIP:  # integers, offset binary: put behind a one with unit 1, then take both off
        value = (bits | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + FLIP)
    elif LOW:
        value = ((bits << 16) | low.to(tl.uint32)).to(tl.float32, bitcast=True)
    elif BITS == 8:
        value = (bits << 16).to(tl.float32, bitcast=True)
    elif BITS == 5:  # float16, or its first bits
        value = (half << (10 - SHIFT)).to(tl.float16, bitcast=True).to(tl.float32)
    else:  # e4m3fn. The factor, 2^120, puts the exponent's bias right, subnormals too.
        tl.static_assert(BITS == 4)
        magnitude = bits & 0x7F
        value = (magnitude << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36
        signed = value.to(tl.uint32, bitcast=True) | ((bits & 0x80) << 24)
        # No infinities; the largest magnitude is NaN.
        value = tl.where(magnitude == 0x7F, signed | 0x7FC00000, signed)
        value = value.to(tl.float32, bitcast=True)
    return value


@triton.jit
def to_operand(half, OPERAND: tl.constexpr, BITS: tl.constexpr, SHIFT: tl.constexpr,
               FLIP: tl.constexpr):  # fmt: skip
    """Halves to bfloat16 or float16, of formats whose values that dtype holds exactly."""
    if BITS == 8 and OPERAND == tl.bfloat16:
        operand = half.to(OPERAND, bitcast=True)
    elif BITS == 5 and OPERAND == tl.float16:
        operand = (half << (10 - SHIFT)).to(OPERAND, bitcast=True)
    else:
        operand = to_float(half, half, BITS, SHIFT, FLIP, False).to(OPERAND)
    return operand
