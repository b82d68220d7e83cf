// Pair registers to floats, on the compiler's vectors, as wide as the target's registers. (Wider
// ones compile too, but GCC then keeps them in memory: 6 times slower.)
#pragma once
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../core/format.h"

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

inline __attribute__((always_inline)) u32v load_u32v(const uint32_t* p) {
  u32v v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline __attribute__((always_inline)) f32v load_f32v(const float* p) {
  f32v v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline __attribute__((always_inline)) void store_f32v(float* p, f32v v) { memcpy(p, &v, sizeof v); }
// Four floats, repeated: the columns of x that the four lanes of a row meet.
inline __attribute__((always_inline)) f32v repeat4(const float* p) {
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
inline __attribute__((always_inline)) f32v small_float(u32v bits) {
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

// The two words of each pair register. `low`: the low halves of 32-bit words.
template <class F>
inline __attribute__((always_inline)) void to_float(u32v pair, u32v low, f32v& first,
                                                    f32v& second) {
  if constexpr (F::fmt.id == Bf16::fmt.id) {
    first = (f32v)(pair << 16);
    second = (f32v)(pair & 0xffff0000u);
  } else if constexpr (F::fmt.id == Fp32::fmt.id) {
    first = (f32v)(pair << 16 | (low & 0xffffu));
    second = (f32v)((pair & 0xffff0000u) | low >> 16);
  } else if constexpr (F::fmt.id == Fp16::fmt.id) {
    first = small_float<5, 10, true>(pair & 0xffffu);
    second = small_float<5, 10, true>(pair >> 16);
  } else if constexpr (F::fmt.id == Fp8E4m3::fmt.id) {
    first = small_float<4, 3, false>(pair & 0xffu);
    second = small_float<4, 3, false>(pair >> 16);
  } else if constexpr (F::fmt.id == Fp8E5m2::fmt.id) {
    first = small_float<5, 2, true>(pair & 0xffu);
    second = small_float<5, 2, true>(pair >> 16);
  } else {
    static_assert(F::fmt.id == Int8::fmt.id, "a weight format without a conversion to float");
    first = __builtin_convertvector((i32v)(pair << 24) >> 24, f32v);
    second = __builtin_convertvector((i32v)(pair << 8) >> 24, f32v);
  }
}

// Bits of bfloat16 or float16, rounded to nearest, ties to even.
template <class To>
inline __attribute__((always_inline)) u32v round_to(f32v value) {
  u32v bits = (u32v)value, sign = bits >> 31 << 15, magnitude = bits & 0x7fffffffu;
  if constexpr (To::fmt.id == Bf16::fmt.id) {
    u32v rounded = (magnitude + 0x7fffu + (magnitude >> 16 & 1u)) >> 16;
    return sign | (magnitude > 0x7f800000u ? (magnitude >> 16 | 0x40u) : rounded);
  } else {
    static_assert(To::fmt.id == Fp16::fmt.id, "no rounding to this format");
    u32v normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    u32v tiny = (u32v)((f32v)magnitude + 0.5f) - 0x3f000000u;
    u32v out = magnitude < (113u << 23) ? tiny : normal;
    out = magnitude >= 0x477ff000u ? u32v{} + 0x7c00u : out;
    return sign | (magnitude > 0x7f800000u ? u32v{} + 0x7e00u : out);
  }
}

}  // namespace
}  // namespace codecllm
