#pragma once
#include "fixed_unit.h"
namespace codecllm {
namespace {
#ifdef __AVX512BF16__
constexpr int kBlockRows = 6;
// words: [half group][row half][lane], as final pairs.
inline void decode_unit(const uint8_t* unit, uint32_t base, uint32_t* words) {
  const __m512i code = _mm512_set1_epi16(0x0780), add = _mm512_set1_epi16(short(base << 7));
#pragma GCC unroll 2
  for (int c = 0; c < kUnitChunks; ++c)
    for_groups(unit, c, [&](int g, const u32v* pairs) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const __m512i p = (__m512i)pairs[j];
        const __m512i w = _mm512_mask_add_epi16(p, _mm512_test_epi16_mask(p, code), p, add);
        _mm512_store_si512(words + (4 * g + j) * kLanes + c * 16, w);
      }
    });
}
// sums [row][row half][lane] += words [half group][row half][lane] * x [half group][row][8]
template <int Rows>
inline void multiply_block(const uint32_t* words, int half_groups, const uint16_t* x, float* sums,
                           const uint8_t* next, int lines) {
  __m512 sum[Rows][4];
#pragma GCC unroll 8
  for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum[row][i] = _mm512_load_ps(sums + 64 * row + 16 * i);
  for (int h = 0; h < half_groups; ++h, words += 64, x += 8 * Rows) {
    for (int i = 0; i < lines; ++i, next += 64) __builtin_prefetch(next, 0, 2);
    __m512bh w[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) w[i] = (__m512bh)_mm512_load_si512(words + 16 * i);
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
      const __m512bh columns =
          (__m512bh)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(x + 8 * row)));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[row][i] = _mm512_dpbf16_ps(sum[row][i], w[i], columns);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) _mm512_store_ps(sums + 64 * row + 16 * i, sum[row][i]);
}
#endif
}
}
