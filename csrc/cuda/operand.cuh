// Pair registers to operands of the tensor cores: two bf16 or fp16 numbers, the exact values of the
// weights. Input: halves as decoded, without the format's `flip`.
#pragma once
#include "device.cuh"

namespace codecllm::cuda {

// Formats whose values all fit into B16 exactly, so that an MMA can multiply them.
template <class F, class B16>
constexpr bool kExact = F::fmt.id == B16::fmt.id || F::fmt.word_bits == 8;

// 8-bit floats whose infinities and NaNs come out of `to_operand` as finite numbers.
template <class F, class B16>
constexpr bool kFixSpecials =
    F::fmt.id == Fp8E4m3::fmt.id || (F::fmt.id == Fp8E5m2::fmt.id && B16::fmt.id == Bf16::fmt.id);

CLLM_HD constexpr uint32_t both(uint32_t half) { return half * 0x10001u; }

template <class F, class B16>
CLLM_DEVICE uint32_t to_operand(uint32_t u) {
  constexpr bool bf16 = B16::fmt.id == Bf16::fmt.id;
  constexpr uint32_t kMinusZero = both(0x8000);
  if constexpr (F::fmt.id == B16::fmt.id) {
    return u;
  } else if constexpr (F::fmt.id == Int8::fmt.id) {
    // u = q + 128 in the mantissa of a number with unit 1, then the offset is taken off.
    if constexpr (!bf16) return fma2<B16>(u | both(0x6400), both(0x3c00), both(0xe480));
    // bf16 has 7 bits for u: its top bit chooses between two offsets, -256 and -128.
    const uint32_t offset = (u & both(0x0080)) ^ both(0xc380);
    return fma2<B16>((u & both(0x007f)) | both(0x4300), both(0x3f80), offset);
  } else if constexpr (F::fmt.id == Fp8E5m2::fmt.id) {
    if constexpr (!bf16) return u << 8;
    // Exponent and mantissa in place, times 2^112 for the difference of the biases: subnormals
    // come out right as well.
    const uint32_t v = (u << 8 & kMinusZero) | (u << 5 & both(0x0fe0));
    return fma2<B16>(v, both(0x7780), kMinusZero);
  } else {
    static_assert(F::fmt.id == Fp8E4m3::fmt.id, "a weight format without an operand");
    if constexpr (bf16) {
      const uint32_t v = (u << 8 & kMinusZero) | (u << 4 & both(0x07f0));
      return fma2<B16>(v, both(0x7b80), kMinusZero);  // 2^120
    }
    const uint32_t v = (u << 8 & kMinusZero) | (u << 7 & both(0x3f80));
    return fma2<B16>(v, both(0x5c00), kMinusZero);  // 2^8
  }
}

// Nonzero if a half of u is an infinity or NaN that `to_operand` misses.
template <class F>
CLLM_DEVICE uint32_t specials(uint32_t u) {
  if constexpr (F::fmt.id == Fp8E4m3::fmt.id)
    return ((u & both(0x7f)) + both(1)) & both(0x80);
  else
    return ((u & both(0x7c)) + both(4)) & both(0x80);
}

// Puts them right.
template <class F, class B16>
CLLM_DEVICE uint32_t fix_specials(uint32_t u, uint32_t operand) {
  constexpr uint32_t infinity = B16::fmt.id == Bf16::fmt.id ? 0x7f80 : 0x7c00;
  const uint32_t found = specials<F>(u);
#pragma unroll
  for (int h = 0; h < 32; h += 16) {
    if (!(found >> h & 0x80)) continue;
    uint32_t value = infinity | (u >> h & 0x80) << 8;
    if (F::fmt.id == Fp8E4m3::fmt.id || (u >> h & 3)) value |= 0x40;  // NaN
    operand = (operand & ~(0xffffu << h)) | value << h;
  }
  return operand;
}

}  // namespace codecllm::cuda
