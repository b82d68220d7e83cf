// The plane of the coding `fixed` in registers (docs/format.md has its bits).
//
//   unit: four groups of a tile, 16 rows x 64 columns, 1536 bytes
//     quad 0 [32 lanes][4 containers]   r0 r1 r2 | r0     container n = 3 * group + i
//     quad 1 [32 lanes][4 containers]   r1 r2 | r0 r1
//     quad 2 [32 lanes][4 containers]   r2 | r0 r1 r2
//
//   transpose: 16 bytes of each lane -> one register per container, lanes in order
//   join:      r0, r1, r2 -> pairs a0..a3; their halves are the weights times 2^-window_base
#pragma once
#include "../core/format.h"
#include "to_float.h"

namespace codecllm {
namespace {

constexpr int kUnitGroups = 4, kUnitCols = kUnitGroups * kGroupCols;
constexpr int kUnitContainers = 3 * kUnitGroups;
constexpr int kQuadBytes = 16 * kLanes, kUnitBytes = 4 * kLanes * kUnitContainers;
constexpr int kUnitChunks = kLanes / kFloats;  // registers that hold the lanes

// Containers n to n + 3 of kFloats lanes; `at`: the first lane's.
CLLM_INLINE void transpose_quad(const uint8_t* at, u32v* r) {
#if defined(__AVX512F__)
  const __m512i a = _mm512_loadu_si512(at), b = _mm512_loadu_si512(at + 64);
  const __m512i c = _mm512_loadu_si512(at + 128), d = _mm512_loadu_si512(at + 192);
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i last = _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
  const __m512i ab = _mm512_permutex2var_epi32(a, first, b);
  const __m512i AB = _mm512_permutex2var_epi32(a, last, b);
  const __m512i cd = _mm512_permutex2var_epi32(c, first, d);
  const __m512i CD = _mm512_permutex2var_epi32(c, last, d);
  r[0] = (u32v)_mm512_shuffle_i64x2(ab, cd, 0x44);
  r[1] = (u32v)_mm512_shuffle_i64x2(ab, cd, 0xee);
  r[2] = (u32v)_mm512_shuffle_i64x2(AB, CD, 0x44);
  r[3] = (u32v)_mm512_shuffle_i64x2(AB, CD, 0xee);
#elif defined(__AVX2__)
  __m256i lane[4];  // lanes i and i + 4
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    lane[i] = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(at + 16 * i))),
        _mm_loadu_si128((const __m128i*)(at + 16 * i + 64)), 1);
  const __m256i ab = _mm256_unpacklo_epi32(lane[0], lane[1]);
  const __m256i AB = _mm256_unpackhi_epi32(lane[0], lane[1]);
  const __m256i cd = _mm256_unpacklo_epi32(lane[2], lane[3]);
  const __m256i CD = _mm256_unpackhi_epi32(lane[2], lane[3]);
  r[0] = (u32v)_mm256_unpacklo_epi64(ab, cd);
  r[1] = (u32v)_mm256_unpackhi_epi64(ab, cd);
  r[2] = (u32v)_mm256_unpacklo_epi64(AB, CD);
  r[3] = (u32v)_mm256_unpackhi_epi64(AB, CD);
#else
  uint32_t word[4 * kFloats];
  memcpy(word, at, sizeof word);
  for (int i = 0; i < 4; ++i)
    for (int lane = 0; lane < kFloats; ++lane) r[i][lane] = word[4 * lane + i];
#endif
}

// Three containers to four pairs.
CLLM_INLINE void join(const u32v* r, u32v* a) {
#if defined(__AVX512F__)
  const __m512i in_place = _mm512_set1_epi32(int(0x87ff87ff)), low = _mm512_set1_epi32(0x80078007);
  const __m512i middle = _mm512_set1_epi32(0x00780078), code = _mm512_set1_epi32(0x07800780);
  constexpr int kAndOr = 0xea;  // (a & b) | c
  __m512i fourth = _mm512_and_si512(_mm512_ror_epi32((__m512i)r[2], 12), low);
  fourth = _mm512_ternarylogic_epi32(_mm512_srli_epi32((__m512i)r[1], 8), middle, fourth, kAndOr);
  fourth = _mm512_ternarylogic_epi32(_mm512_srli_epi32((__m512i)r[0], 4), code, fourth, kAndOr);
  a[0] = (u32v)_mm512_and_si512((__m512i)r[0], in_place);
  a[1] = (u32v)_mm512_and_si512((__m512i)r[1], in_place);
  a[2] = (u32v)_mm512_and_si512((__m512i)r[2], in_place);
  a[3] = (u32v)fourth;
#else
  a[0] = r[0] & 0x87ff87ffu;
  a[1] = r[1] & 0x87ff87ffu;
  a[2] = r[2] & 0x87ff87ffu;
  a[3] = ((r[2] >> 12 | r[2] << 20) & 0x80078007u) | (r[1] >> 8 & 0x00780078u) |
         (r[0] >> 4 & 0x07800780u);
#endif
}

// Chunk c of the lanes of a unit: use(group, pairs) for its four groups.
template <class Use>
CLLM_INLINE void for_groups(const uint8_t* unit, int c, Use&& use) {
  u32v r[kUnitContainers];
#pragma GCC unroll 3
  for (int q = 0; q < 3; ++q)
    transpose_quad(unit + q * kQuadBytes + c * kFloats * 16, r + 4 * q);
#pragma GCC unroll 4
  for (int g = 0; g < kUnitGroups; ++g) {
    u32v pairs[kPairsPerGroup];
    join(r + 3 * g, pairs);
    use(g, pairs);
  }
}

// The last groups of a tile, 1 to 3, as a unit: what is missing becomes zero.
inline void widen_unit(const uint8_t* tail, int groups, uint8_t* unit) {
  memset(unit, 0, kUnitBytes);
  const int count = 3 * groups;
  for (int quad = 0; 4 * quad < count; ++quad) {
    const int width = count - 4 * quad < 4 ? count - 4 * quad : 4;
    for (int lane = 0; lane < kLanes; ++lane)
      memcpy(unit + quad * kQuadBytes + 16 * lane,
             tail + 4 * container_at(4 * quad, lane, count), size_t(4 * width));
  }
}

}  // namespace
}  // namespace codecllm
