// One word to float32 and back, for host and device. csrc/cpu/to_float.h is the same on vectors.
#pragma once
#include "format.h"

namespace codecllm {

enum class Dtype { f32, bf16, f16 };  // of activations

CLLM_HD float float_from_bits(uint32_t bits) {
  union {
    uint32_t u;
    float f;
  } v = {bits};
  return v.f;
}
CLLM_HD uint32_t bits_from_float(float value) {
  union {
    float f;
    uint32_t u;
  } v = {value};
  return v.u;
}

// A float of E exponent and M mantissa bits in the low bits of `bits`, sign on top.
template <int E, int M, bool HasInf>
CLLM_HD float small_float_value(uint32_t bits) {
  constexpr uint32_t bias = (1u << (E - 1)) - 1, top = (1u << (E + M)) - 1;
  const uint32_t sign = (bits >> (E + M) & 1u) << 31;
  const uint32_t magnitude = bits & top, wide = magnitude << (23 - M);
  constexpr uint32_t special_from = HasInf ? ((1u << E) - 1) << M : top;
  if (magnitude >= special_from) return float_from_bits(sign | 0x7f800000u | wide);
  // Subnormals go through a subtraction: their value times two to the power of a normal number.
  if (magnitude < (1u << M)) {
    const float unit = float_from_bits((128 - bias) << 23);
    const float value = float_from_bits(wide | ((128 - bias) << 23)) - unit;
    return float_from_bits(sign | bits_from_float(value));
  }
  return float_from_bits(sign | (wide + ((127 - bias) << 23)));
}

// `half` is the (high) half of the word in bits 0..15, `low` the low half of a 32-bit word.
template <class F>
CLLM_HD float word_value(uint32_t half, uint32_t low = 0) {
  if constexpr (F::fmt.id == Bf16::fmt.id) return float_from_bits(half << 16);
  if constexpr (F::fmt.id == Fp32::fmt.id) return float_from_bits(half << 16 | low);
  if constexpr (F::fmt.id == Fp16::fmt.id) return small_float_value<5, 10, true>(half);
  if constexpr (F::fmt.id == Fp8E4m3::fmt.id) return small_float_value<4, 3, false>(half);
  if constexpr (F::fmt.id == Fp8E5m2::fmt.id) return small_float_value<5, 2, true>(half);
  if constexpr (F::fmt.id == Int8::fmt.id) return float(int8_t(half));
}

// Bits of bfloat16 or float16, rounded to nearest, ties to even.
template <class To>
CLLM_HD uint32_t round_bits(float value) {
  const uint32_t bits = bits_from_float(value), sign = bits >> 31 << 15;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if constexpr (To::fmt.id == Bf16::fmt.id) {
    if (magnitude > 0x7f800000u) return sign | magnitude >> 16 | 0x40u;
    return sign | (magnitude + 0x7fffu + (magnitude >> 16 & 1u)) >> 16;
  } else {
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
    if (magnitude < (113u << 23))
      return sign | (bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u);
    return sign | (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
}

}  // namespace codecllm
