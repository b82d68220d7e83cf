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

// How words of a kind become float32. A kind without one does not compile.
template <class Kind>
struct ValueOf;

template <int E, int M, bool HasInf>
struct ValueOf<Float<E, M, HasInf>> {
  static CLLM_HD float get(uint32_t word) { return small_float_value<E, M, HasInf>(word); }
};

// float32 and its upper part.
template <int M>
struct ValueOf<Float<8, M, true>> {
  static CLLM_HD float get(uint32_t word) { return float_from_bits(word << (23 - M)); }
};

template <int Bits>
struct ValueOf<Integer<Bits>> {
  static CLLM_HD float get(uint32_t word) {
    return float(int32_t(word << (32 - Bits)) >> (32 - Bits));
  }
};

// `half` is the (high) half of the word in bits 0..15, `low` the low half of a 32-bit word.
template <class F>
CLLM_HD float word_value(uint32_t half, uint32_t low = 0) {
  return ValueOf<typename F::Kind>::get(F::fmt.word_bits == 32 ? half << 16 | low : half);
}

// How float32 becomes a word of a kind, rounded to nearest, ties to even.
template <class Kind>
struct RoundTo;

template <int E, int M>
struct RoundTo<Float<E, M, true>> {
  static constexpr uint32_t bias = (1u << (E - 1)) - 1, shift = 23 - M;
  static constexpr uint32_t rebias = (127 - bias) << 23, normal_from = rebias + (1u << 23);
  static constexpr uint32_t below_half = (1u << (shift - 1)) - 1;
  static constexpr uint32_t infinity = ((1u << E) - 1) << M, nan = infinity | 1u << (M - 1);
  static constexpr uint32_t overflow = (127 + bias) << 23 | ((2u << M) - 1) << (shift - 1);
  // Added to a number whose last place is the smallest subnormal, a tiny one is rounded to it.
  static constexpr uint32_t magic = rebias + ((24u - M) << 23);

  static CLLM_HD uint32_t bits(float value) {
    const uint32_t all = bits_from_float(value), sign = all >> 31 << (E + M);
    const uint32_t magnitude = all & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | nan;
    if (magnitude >= overflow) return sign | infinity;
    if (magnitude < normal_from)
      return sign | (bits_from_float(float_from_bits(magnitude) + float_from_bits(magic)) - magic);
    return sign | (magnitude - rebias + below_half + (magnitude >> shift & 1u)) >> shift;
  }
};

// The upper part of float32; a NaN keeps what it has of it.
template <int M>
struct RoundTo<Float<8, M, true>> {
  static constexpr uint32_t shift = 23 - M, below_half = (1u << (shift - 1)) - 1;
  static constexpr uint32_t quiet = 1u << (M - 1);

  static CLLM_HD uint32_t bits(float value) {
    const uint32_t all = bits_from_float(value), sign = all >> 31 << (8 + M);
    const uint32_t magnitude = all & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | magnitude >> shift | quiet;
    return sign | (magnitude + below_half + (magnitude >> shift & 1u)) >> shift;
  }
};

template <>
struct RoundTo<Float<8, 23, true>> {
  static CLLM_HD uint32_t bits(float value) { return bits_from_float(value); }
};

// Bits of a word of format To, rounded to nearest, ties to even.
template <class To>
CLLM_HD uint32_t round_bits(float value) {
  return RoundTo<typename To::Kind>::bits(value);
}

// Calls f with the weight format whose words activations of that dtype are.
template <class F>
CLLM_HD void with_activation(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(Fp32{});
    case Dtype::bf16:
      return f(Bf16{});
    case Dtype::f16:
      return f(Fp16{});
  }
}

// Element i of activations of one dtype.
template <class F>
CLLM_HD float load_float(const void* p, int64_t i) {
  if constexpr (kSameKind<F, Fp32>)
    return ((const float*)p)[i];
  else
    return word_value<F>(((const uint16_t*)p)[i]);
}
CLLM_HD float load_float(const void* p, Dtype dtype, int64_t i) {
  float value = 0;
  with_activation(dtype, [&](auto f) { value = load_float<decltype(f)>(p, i); });
  return value;
}
CLLM_HD void store_float(void* p, Dtype dtype, int64_t i, float value) {
  with_activation(dtype, [&](auto f) {
    using F = decltype(f);
    if constexpr (kSameKind<F, Fp32>)
      ((float*)p)[i] = value;
    else
      ((uint16_t*)p)[i] = uint16_t(round_bits<F>(value));
  });
}

}  // namespace codecllm
