// Pair registers to floats, on the compiler's vectors, as wide as the target's registers. (Wider
// ones compile too, but GCC then keeps them in memory: 6 times slower.)
#pragma once
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../core/convert.h"

namespace codecllm {
namespace {

#if defined(__AVX512F__)
constexpr int kFloats = 16;
#elif defined(__AVX2__)
constexpr int kFloats = 8;
#else
constexpr int kFloats = 4;
#endif
typedef uint32_t u32v __attribute__((vector_size(4 * kFloats)));
typedef int32_t i32v __attribute__((vector_size(4 * kFloats)));
typedef float f32v __attribute__((vector_size(4 * kFloats)));

CLLM_INLINE u32v load_u32v(const uint32_t* p) {
  u32v v;
  memcpy(&v, p, sizeof v);
  return v;
}
CLLM_INLINE f32v load_f32v(const float* p) {
  f32v v;
  memcpy(&v, p, sizeof v);
  return v;
}
CLLM_INLINE void store_f32v(float* p, f32v v) { memcpy(p, &v, sizeof v); }
// Four floats, repeated: the columns of x that the four lanes of a row meet.
CLLM_INLINE f32v repeat4(const float* p) {
#if defined(__AVX512F__)
  return (f32v)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
#elif defined(__AVX2__)
  return (f32v)_mm256_broadcast_ps((const __m128*)p);
#else
  return load_f32v(p);
#endif
}

// A float of E exponent and M mantissa bits in the low bits of `bits`, sign on top.
// Subnormals go through a subtraction, so that flush-to-zero mode does not lose them.
template <int E, int M, bool HasInf>
CLLM_INLINE f32v small_float(u32v bits) {
  constexpr uint32_t bias = (1u << (E - 1)) - 1, top = (1u << (E + M)) - 1;
  u32v sign = (bits >> (E + M)) << 31;
  u32v magnitude = bits & top;
  u32v wide = magnitude << (23 - M);
  f32v tiny = (f32v)(wide | ((128 - bias) << 23)) - (f32v)(u32v{} + ((128 - bias) << 23));
  u32v normal = wide + ((127 - bias) << 23);
  constexpr uint32_t special_from = HasInf ? ((1u << E) - 1) << M : top;
  u32v out = magnitude < (1u << M) ? (u32v)tiny : normal;
  out = magnitude >= special_from ? (wide | 0x7f800000u) : out;
  return (f32v)(out | sign);
}

// How words of a kind become float32, as in core/convert.h: `first` and `second` of each pair
// register. A kind without one does not compile. `low`: the low halves of 32-bit words.
template <class Kind>
struct VectorOf;

template <int E, int M, bool HasInf>
struct VectorOf<Float<E, M, HasInf>> {
  static CLLM_INLINE f32v first(u32v pair, u32v) {
    return small_float<E, M, HasInf>(pair & ((1u << (1 + E + M)) - 1));
  }
  static CLLM_INLINE f32v second(u32v pair, u32v) { return small_float<E, M, HasInf>(pair >> 16); }
};

template <>
struct VectorOf<Float<8, 7, true>> {
  static CLLM_INLINE f32v first(u32v pair, u32v) { return (f32v)(pair << 16); }
  static CLLM_INLINE f32v second(u32v pair, u32v) { return (f32v)(pair & 0xffff0000u); }
};

template <>
struct VectorOf<Float<8, 23, true>> {
  static CLLM_INLINE f32v first(u32v pair, u32v low) {
    return (f32v)(pair << 16 | (low & 0xffffu));
  }
  static CLLM_INLINE f32v second(u32v pair, u32v low) {
    return (f32v)((pair & 0xffff0000u) | low >> 16);
  }
};

template <int Bits>
struct VectorOf<Integer<Bits>> {
  static CLLM_INLINE f32v first(u32v pair, u32v) {
    return __builtin_convertvector((i32v)(pair << (32 - Bits)) >> (32 - Bits), f32v);
  }
  static CLLM_INLINE f32v second(u32v pair, u32v) {
    return __builtin_convertvector((i32v)(pair << (16 - Bits)) >> (32 - Bits), f32v);
  }
};

template <class F>
CLLM_INLINE void to_float(u32v pair, u32v low, f32v& first, f32v& second) {
  first = VectorOf<typename F::Kind>::first(pair, low);
  second = VectorOf<typename F::Kind>::second(pair, low);
}

// RoundTo of core/convert.h on vectors.
template <class Kind>
struct RoundVectorTo;

template <int E, int M>
struct RoundVectorTo<Float<E, M, true>> {
  static CLLM_INLINE u32v bits(f32v value) {
    using To = RoundTo<Float<E, M, true>>;
    const u32v all = (u32v)value, sign = all >> 31 << (E + M), magnitude = all & 0x7fffffffu;
    const u32v odd = magnitude >> To::shift & 1u;
    const u32v normal = (magnitude - To::rebias + To::below_half + odd) >> To::shift;
    const u32v tiny = (u32v)((f32v)magnitude + float_from_bits(To::magic)) - To::magic;
    u32v out = magnitude < To::normal_from ? tiny : normal;
    out = magnitude >= To::overflow ? u32v{} + To::infinity : out;
    return sign | (magnitude > 0x7f800000u ? u32v{} + To::nan : out);
  }
};

template <int M>
struct RoundVectorTo<Float<8, M, true>> {
  static CLLM_INLINE u32v bits(f32v value) {
    using To = RoundTo<Float<8, M, true>>;
    const u32v all = (u32v)value, sign = all >> 31 << (8 + M), magnitude = all & 0x7fffffffu;
    const u32v rounded = (magnitude + To::below_half + (magnitude >> To::shift & 1u)) >> To::shift;
    return sign | (magnitude > 0x7f800000u ? (magnitude >> To::shift | To::quiet) : rounded);
  }
};

// Bits of words of format To, rounded to nearest, ties to even.
template <class To>
CLLM_INLINE u32v round_to(f32v value) {
  return RoundVectorTo<typename To::Kind>::bits(value);
}

}  // namespace
}  // namespace codecllm
