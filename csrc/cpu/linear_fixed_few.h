// Few rows of x: weights go from memory through registers into the products and are nowhere else.
#pragma once
#include "fixed_unit.h"

namespace codecllm {
namespace {

// ---- products -----------------------------------------------------------------------------------

// x as floats: of 8 columns first the even, then the odd ones.
struct DotFloat {
  using X = float;
  struct Weights {
    f32v even, odd;
  };
  static CLLM_INLINE Weights unpack(u32v pair) {
    return {(f32v)(pair << 16), (f32v)(pair & 0xffff0000u)};
  }
  static CLLM_INLINE Weights columns(const X* x) { return {repeat4(x), repeat4(x + 4)}; }
  static CLLM_INLINE void add(f32v& sum, const Weights& w, const Weights& x) {
    sum += w.even * x.even;
    sum += w.odd * x.odd;
  }
};

#ifdef __AVX512BF16__
// x as bfloat16.
struct DotBf16 {
  using X = uint16_t;
  using Weights = __m512bh;
  static CLLM_INLINE Weights unpack(u32v pair) { return (Weights)(__m512i)pair; }
  static CLLM_INLINE Weights columns(const X* x) {
    return (Weights)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)x));
  }
  static CLLM_INLINE void add(f32v& sum, Weights w, Weights x) {
    sum = (f32v)_mm512_dpbf16_ps((__m512)sum, w, x);
  }
};
#endif

// Sums of a tile row: [row half][chunk] are the 32 lanes, four to a row.
template <int Rows>
struct Sums {
  f32v at[Rows][2][kUnitChunks];
};

// Four groups times Rows rows of x; x: [half group][row][8].
template <class Dot, int Rows>
CLLM_INLINE void multiply_chunk(const uint8_t* unit, int c, const typename Dot::X* x,
                                f32v (*sum)[2]) {
  for_groups(unit, c, [&](int g, const u32v* pairs) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const auto upper = Dot::unpack(pairs[2 * half]), lower = Dot::unpack(pairs[2 * half + 1]);
      const auto* at = x + (2 * g + half) * Rows * 8;
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row) {
        const auto columns = Dot::columns(at + 8 * row);
        Dot::add(sum[row][0], upper, columns);
        Dot::add(sum[row][1], lower, columns);
      }
    }
  });
}

#ifndef AHEAD
#define AHEAD 4608
#endif
CLLM_INLINE void prefetch_unit(const uint8_t* at, int from, int to) {
#pragma GCC unroll 24
  for (int i = from; i < to; ++i) __builtin_prefetch(at + 64 * i);
}

// `units` units in a row; few enough sums stay in registers.
template <class Dot, int Rows>
inline void multiply_units(const uint8_t* unit, int units, const typename Dot::X* x,
                           Sums<Rows>& sums) {
  constexpr int kStep = kUnitCols * Rows;
#if defined(__AVX512F__)
  constexpr bool all_in_registers = Rows <= 4;
#else
  constexpr bool all_in_registers = false;
#endif
  if constexpr (all_in_registers) {
    f32v sum[kUnitChunks][Rows][2];
    for (int c = 0; c < kUnitChunks; ++c)
      for (int row = 0; row < Rows; ++row)
        for (int half = 0; half < 2; ++half) sum[c][row][half] = sums.at[row][half][c];
    for (int u = 0; u < units; ++u, unit += kUnitBytes, x += kStep) {
      prefetch_unit(unit + AHEAD, 0, 24);
#pragma GCC unroll 4
      for (int c = 0; c < kUnitChunks; ++c) multiply_chunk<Dot, Rows>(unit, c, x, sum[c]);
    }
    for (int c = 0; c < kUnitChunks; ++c)
      for (int row = 0; row < Rows; ++row)
        for (int half = 0; half < 2; ++half) sums.at[row][half][c] = sum[c][row][half];
  } else {
    for (int c = 0; c < kUnitChunks; ++c) {
      f32v sum[Rows][2];
      for (int row = 0; row < Rows; ++row)
        for (int half = 0; half < 2; ++half) sum[row][half] = sums.at[row][half][c];
      const uint8_t* at = unit;
      const typename Dot::X* x_at = x;
      for (int u = 0; u < units; ++u, at += kUnitBytes, x_at += kStep) {
        constexpr int kLines = kFloats * 16 / 64 > 0 ? kFloats * 16 / 64 : 1;
        for (int q = 0; q < 3; ++q)
#pragma GCC unroll 4
          for (int i = 0; i < kLines; ++i)
            __builtin_prefetch(at + 8 * kUnitBytes + q * kQuadBytes + c * kFloats * 16 + 64 * i);
        multiply_chunk<Dot, Rows>(at, c, x_at, sum);
      }
      for (int row = 0; row < Rows; ++row)
        for (int half = 0; half < 2; ++half) sums.at[row][half][c] = sum[row][half];
    }
  }
}

}  // namespace
}  // namespace codecllm
