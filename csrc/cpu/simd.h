// The vector register of this translation unit's instruction set, with the few operations that a
// decode step needs. The decode loop (source_rans.h) is written once on top of it.
//
//   reg           W unsigned 32-bit lanes
//   Words         four 16-bit words per lane, the next ones of its stream
//   fetch         four words from `base + 2 * pos` for every lane
//   renorm        x < 2^16: shift in a word, drop it from Words, advance pos
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__AVX512VBMI2__)
#include <immintrin.h>
#elif defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../core/rans.h"

namespace codecllm {
namespace {

using u32 = uint32_t;

#if defined(__AVX512VBMI2__)

struct V {
  static constexpr int W = 16;
  using reg = __m512i;
  struct Words {
    reg lo, hi;
  };
  static reg set1(uint32_t v) { return _mm512_set1_epi32(int(v)); }
  static reg load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static void store(uint32_t* p, reg a) { _mm512_storeu_si512(p, a); }
  static reg and_(reg a, reg b) { return _mm512_and_si512(a, b); }
  static reg or_(reg a, reg b) { return _mm512_or_si512(a, b); }
  static reg xor_(reg a, reg b) { return _mm512_xor_si512(a, b); }
  static reg add(reg a, reg b) { return _mm512_add_epi32(a, b); }
  static reg min(reg a, reg b) { return _mm512_min_epu32(a, b); }
  static reg max(reg a, reg b) { return _mm512_max_epu32(a, b); }
  // On GCC's vectors, because constant counts must become immediates, not registers.
  static reg shr(reg a, int n) { return (reg)((u32 __attribute__((vector_size(64))))a >> n); }
  static reg rotr(reg a, int n) {
    using v = u32 __attribute__((vector_size(64)));
    return (reg)((v)a >> (n & 31) | (v)a << (-n & 31));
  }
  static reg mul_add(reg a, reg b, reg c) { return _mm512_add_epi32(_mm512_mullo_epi32(a, b), c); }
  // A gather merges into its destination: from zero, or it would wait for whatever the compiler's
  // undefined register held before.
  static reg gather(const uint32_t* table, reg i) {
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), 0xffff, i, table, 4);
  }
  static bool any_ge(reg a, uint32_t b) { return _mm512_cmpge_epu32_mask(a, set1(b)) != 0; }
  static bool all_eq(reg a, reg b) { return _mm512_cmpneq_epu32_mask(a, b) == 0; }
  // One 64-bit gather for four steps: a 32-bit gather per step costs twice the whole loop.
  static Words fetch(const uint8_t* base, reg pos) {
    const reg even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const reg odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const reg zero = _mm512_setzero_si512();
    reg a = _mm512_mask_i32gather_epi64(zero, 0xff, _mm512_castsi512_si256(pos), base, 2);
    reg b = _mm512_mask_i32gather_epi64(zero, 0xff, _mm512_extracti64x4_epi64(pos, 1), base, 2);
    return {_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b)};
  }
  static void renorm(reg& x, Words& w, reg& pos) {
    __mmask16 k = _mm512_cmplt_epu32_mask(x, set1(kRansL));
    x = _mm512_mask_shldi_epi32(x, k, x, _mm512_slli_epi32(w.lo, 16), 16);
    w.lo = _mm512_mask_shrdi_epi32(w.lo, k, w.lo, w.hi, 16);
    w.hi = _mm512_mask_srli_epi32(w.hi, k, w.hi, 16);
    pos = _mm512_mask_add_epi32(pos, k, pos, set1(1));
  }
  // [32 lanes][4] to [4][32 lanes].
  static void transpose_quad(const uint8_t* src, uint32_t* dst) {
    const reg c01 = _mm512_set_epi32(29, 25, 21, 17, 13, 9, 5, 1, 28, 24, 20, 16, 12, 8, 4, 0);
    const reg c23 = _mm512_set_epi32(31, 27, 23, 19, 15, 11, 7, 3, 30, 26, 22, 18, 14, 10, 6, 2);
    for (int half = 0; half < 2; ++half, src += 256, dst += 16) {
      reg a0 = _mm512_loadu_si512(src), a1 = _mm512_loadu_si512(src + 64);
      reg a2 = _mm512_loadu_si512(src + 128), a3 = _mm512_loadu_si512(src + 192);
      reg p = _mm512_permutex2var_epi32(a0, c01, a1), q = _mm512_permutex2var_epi32(a2, c01, a3);
      reg r = _mm512_permutex2var_epi32(a0, c23, a1), s = _mm512_permutex2var_epi32(a2, c23, a3);
      _mm512_storeu_si512(dst, _mm512_shuffle_i64x2(p, q, 0x44));
      _mm512_storeu_si512(dst + 32, _mm512_shuffle_i64x2(p, q, 0xee));
      _mm512_storeu_si512(dst + 64, _mm512_shuffle_i64x2(r, s, 0x44));
      _mm512_storeu_si512(dst + 96, _mm512_shuffle_i64x2(r, s, 0xee));
    }
  }
};

#elif defined(__AVX2__)

struct V {
  static constexpr int W = 8;
  using reg = __m256i;
  struct Words {
    reg lo, hi;
  };
  static reg set1(uint32_t v) { return _mm256_set1_epi32(int(v)); }
  static reg load(const uint32_t* p) { return _mm256_loadu_si256((const reg*)p); }
  static void store(uint32_t* p, reg a) { _mm256_storeu_si256((reg*)p, a); }
  static reg and_(reg a, reg b) { return _mm256_and_si256(a, b); }
  static reg or_(reg a, reg b) { return _mm256_or_si256(a, b); }
  static reg xor_(reg a, reg b) { return _mm256_xor_si256(a, b); }
  static reg add(reg a, reg b) { return _mm256_add_epi32(a, b); }
  static reg min(reg a, reg b) { return _mm256_min_epu32(a, b); }
  static reg max(reg a, reg b) { return _mm256_max_epu32(a, b); }
  static reg shr(reg a, int n) { return (reg)((u32 __attribute__((vector_size(32))))a >> n); }
  static reg rotr(reg a, int n) {
    using v = u32 __attribute__((vector_size(32)));
    return (reg)((v)a >> (n & 31) | (v)a << (-n & 31));
  }
  static reg mul_add(reg a, reg b, reg c) { return _mm256_add_epi32(_mm256_mullo_epi32(a, b), c); }
  static reg gather(const uint32_t* table, reg i) {
    return _mm256_i32gather_epi32((const int*)table, i, 4);
  }
  static bool any_ge(reg a, uint32_t b) {
    return !all_ones(_mm256_cmpeq_epi32(min(a, set1(b - 1)), a));
  }
  static bool all_eq(reg a, reg b) { return all_ones(_mm256_cmpeq_epi32(a, b)); }
  static Words fetch(const uint8_t* base, reg pos) {
    auto at = (const long long*)base;
    reg a = _mm256_i32gather_epi64(at, _mm256_castsi256_si128(pos), 2);
    reg b = _mm256_i32gather_epi64(at, _mm256_extracti128_si256(pos, 1), 2);
    return {evens(a, b, 0), evens(a, b, 1)};
  }
  static void renorm(reg& x, Words& w, reg& pos) {
    reg k = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
    reg word = and_(w.lo, set1(0xffff));
    x = _mm256_blendv_epi8(x, or_(_mm256_slli_epi32(x, 16), word), k);
    reg next = or_(_mm256_srli_epi32(w.lo, 16), _mm256_slli_epi32(w.hi, 16));
    w.lo = _mm256_blendv_epi8(w.lo, next, k);
    w.hi = _mm256_blendv_epi8(w.hi, _mm256_srli_epi32(w.hi, 16), k);
    pos = _mm256_sub_epi32(pos, k);
  }
  static void transpose_quad(const uint8_t* src, uint32_t* dst) {
    for (int lane = 0; lane < kLanes; lane += 4, src += 64, dst += 4) {
      auto at = (const __m128i*)src;
      __m128i a = _mm_loadu_si128(at), b = _mm_loadu_si128(at + 1);
      __m128i c = _mm_loadu_si128(at + 2), d = _mm_loadu_si128(at + 3);
      __m128i ab = _mm_unpacklo_epi32(a, b), AB = _mm_unpackhi_epi32(a, b);
      __m128i cd = _mm_unpacklo_epi32(c, d), CD = _mm_unpackhi_epi32(c, d);
      _mm_storeu_si128((__m128i*)dst, _mm_unpacklo_epi64(ab, cd));
      _mm_storeu_si128((__m128i*)(dst + 32), _mm_unpackhi_epi64(ab, cd));
      _mm_storeu_si128((__m128i*)(dst + 64), _mm_unpacklo_epi64(AB, CD));
      _mm_storeu_si128((__m128i*)(dst + 96), _mm_unpackhi_epi64(AB, CD));
    }
  }

 private:
  static bool all_ones(reg a) { return _mm256_movemask_epi8(a) == -1; }
  static reg evens(reg a, reg b, int odd) {  // 32-bit lanes odd, odd + 2, ... of a then b
    __m256 fa = _mm256_castsi256_ps(a), fb = _mm256_castsi256_ps(b);
    __m256 s = odd ? _mm256_shuffle_ps(fa, fb, 0xdd) : _mm256_shuffle_ps(fa, fb, 0x88);
    return _mm256_permute4x64_epi64(_mm256_castps_si256(s), 0xd8);
  }
};

#else

struct V {
  static constexpr int W = 8;
  struct reg {
    uint32_t v[W];
  };
  struct Words {
    reg lo, hi;
  };
  template <class F>
  static reg each(F&& f) {
    reg r;
    for (int i = 0; i < W; ++i) r.v[i] = f(i);
    return r;
  }
  static reg set1(uint32_t v) {
    return each([&](int) { return v; });
  }
  static reg load(const uint32_t* p) {
    reg r;
    memcpy(&r, p, sizeof r);
    return r;
  }
  static void store(uint32_t* p, const reg& a) { memcpy(p, &a, sizeof a); }
  static reg and_(const reg& a, const reg& b) {
    return each([&](int i) { return a.v[i] & b.v[i]; });
  }
  static reg or_(const reg& a, const reg& b) {
    return each([&](int i) { return a.v[i] | b.v[i]; });
  }
  static reg xor_(const reg& a, const reg& b) {
    return each([&](int i) { return a.v[i] ^ b.v[i]; });
  }
  static reg add(const reg& a, const reg& b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static reg min(const reg& a, const reg& b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static reg max(const reg& a, const reg& b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static reg shr(const reg& a, int n) {
    return each([&](int i) { return a.v[i] >> n; });
  }
  static reg rotr(const reg& a, int n) {
    return each([&](int i) { return a.v[i] >> (n & 31) | a.v[i] << (-n & 31); });
  }
  static reg mul_add(const reg& a, const reg& b, const reg& c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static reg gather(const uint32_t* table, const reg& at) {
    return each([&](int i) { return table[at.v[i]]; });
  }
  static bool any_ge(const reg& a, uint32_t b) {
    uint32_t any = 0;
    for (int i = 0; i < W; ++i) any |= a.v[i] >= b;
    return any;
  }
  static bool all_eq(const reg& a, const reg& b) {
    uint32_t differ = 0;
    for (int i = 0; i < W; ++i) differ |= a.v[i] ^ b.v[i];
    return !differ;
  }
  static Words fetch(const uint8_t* base, const reg& pos) {
    Words w;
    for (int i = 0; i < W; ++i) {
      memcpy(&w.lo.v[i], base + 2 * size_t(pos.v[i]), 4);
      memcpy(&w.hi.v[i], base + 2 * size_t(pos.v[i]) + 4, 4);
    }
    return w;
  }
  static void renorm(reg& x, Words& w, reg& pos) {
    for (int i = 0; i < W; ++i) {
      bool k = x.v[i] < kRansL;
      x.v[i] = k ? x.v[i] << 16 | (w.lo.v[i] & 0xffff) : x.v[i];
      w.lo.v[i] = k ? w.lo.v[i] >> 16 | w.hi.v[i] << 16 : w.lo.v[i];
      w.hi.v[i] = k ? w.hi.v[i] >> 16 : w.hi.v[i];
      pos.v[i] += k;
    }
  }
  static void transpose_quad(const uint8_t* src, uint32_t* dst) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < 4; ++i) memcpy(dst + 32 * i + lane, src + 16 * lane + 4 * i, 4);
  }
};

#endif

}  // namespace
}  // namespace codecllm
