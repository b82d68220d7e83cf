// The vector register of this translation unit's instruction set, with the few operations that a
// decode step needs. The decode loop (source_rans.h) is written once on top of it.
//
//   reg           W unsigned 32-bit lanes
//   Words         four 16-bit words per lane, the next ones of its stream
//   fetch         four words from `base + 2 * pos` for every lane
//   renorm        x < 2^16: shift in a word, drop it from Words, advance pos
//   load_quads    W lanes' quads (16 bytes a lane), as four registers; store_quads: back
//   Halves        which of the 2 * W halves of 16 bits: none16 (none of the bits), below16, and
//                 keep16, drop16: what is in these halves, in the others; bits16: a bit per half
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
  static reg shl(reg a, int n) { return (reg)((u32 __attribute__((vector_size(64))))a << n); }
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
  static void load_quads(const uint8_t* p, reg (&out)[4]) {
    const reg c01 = _mm512_set_epi32(29, 25, 21, 17, 13, 9, 5, 1, 28, 24, 20, 16, 12, 8, 4, 0);
    const reg c23 = _mm512_set_epi32(31, 27, 23, 19, 15, 11, 7, 3, 30, 26, 22, 18, 14, 10, 6, 2);
    reg a0 = _mm512_loadu_si512(p), a1 = _mm512_loadu_si512(p + 64);
    reg a2 = _mm512_loadu_si512(p + 128), a3 = _mm512_loadu_si512(p + 192);
    reg l = _mm512_permutex2var_epi32(a0, c01, a1), m = _mm512_permutex2var_epi32(a2, c01, a3);
    reg r = _mm512_permutex2var_epi32(a0, c23, a1), s = _mm512_permutex2var_epi32(a2, c23, a3);
    out[0] = _mm512_shuffle_i64x2(l, m, 0x44);
    out[1] = _mm512_shuffle_i64x2(l, m, 0xee);
    out[2] = _mm512_shuffle_i64x2(r, s, 0x44);
    out[3] = _mm512_shuffle_i64x2(r, s, 0xee);
  }
  static void store_quads(uint8_t* p, const reg (&in)[4]) {
    const reg low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const reg high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
    const reg low64 = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const reg high64 = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    for (int half = 0; half < 2; ++half) {
      const reg by = half ? high : low;
      reg l = _mm512_permutex2var_epi32(in[0], by, in[1]);
      reg m = _mm512_permutex2var_epi32(in[2], by, in[3]);
      _mm512_storeu_si512(p + 128 * half, _mm512_permutex2var_epi64(l, low64, m));
      _mm512_storeu_si512(p + 128 * half + 64, _mm512_permutex2var_epi64(l, high64, m));
    }
  }

  using Halves = __mmask32;
  static constexpr uint32_t kAllHalves = 0xffffffff;
  static Halves both16(Halves a, Halves b) { return a & b; }
  static Halves either16(Halves a, Halves b) { return a | b; }
  static Halves none16(reg a, uint32_t bits) { return _mm512_testn_epi16_mask(a, set1(bits)); }
  static Halves below16(reg a, uint16_t b) {
    return _mm512_cmplt_epu16_mask(a, _mm512_set1_epi16(short(b)));
  }
  static reg keep16(Halves k, reg a) { return _mm512_maskz_mov_epi16(k, a); }
  static reg drop16(Halves k, reg a) { return _mm512_mask_mov_epi16(a, k, _mm512_setzero_si512()); }
  static reg add16(reg a, reg b) { return _mm512_add_epi16(a, b); }
  static reg sub16(reg a, reg b) { return _mm512_sub_epi16(a, b); }
  static uint32_t bits16(Halves k) { return k; }
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
  static reg shl(reg a, int n) { return (reg)((u32 __attribute__((vector_size(32))))a << n); }
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
  static void load_quads(const uint8_t* p, reg (&out)[4]) {
    reg a = two(p, p + 64), b = two(p + 16, p + 80), c = two(p + 32, p + 96),
        d = two(p + 48, p + 112);
    transpose(a, b, c, d, out);
  }
  static void store_quads(uint8_t* p, const reg (&in)[4]) {
    reg lanes[4];  // i and i + 4
    transpose(in[0], in[1], in[2], in[3], lanes);
    for (int i = 0; i < 4; ++i) {
      _mm_storeu_si128((__m128i*)(p + 16 * i), _mm256_castsi256_si128(lanes[i]));
      _mm_storeu_si128((__m128i*)(p + 16 * i + 64), _mm256_extracti128_si256(lanes[i], 1));
    }
  }

  using Halves = reg;  // all bits of a half, or none
  static constexpr uint32_t kAllHalves = 0xffff;
  static Halves both16(Halves a, Halves b) { return and_(a, b); }
  static Halves either16(Halves a, Halves b) { return or_(a, b); }
  static Halves none16(reg a, uint32_t bits) {
    return _mm256_cmpeq_epi16(and_(a, set1(bits)), _mm256_setzero_si256());
  }
  static Halves below16(reg a, uint16_t b) {
    const reg most = _mm256_set1_epi16(short(b - 1));
    return _mm256_cmpeq_epi16(_mm256_subs_epu16(a, most), _mm256_setzero_si256());
  }
  static reg keep16(Halves k, reg a) { return and_(k, a); }
  static reg drop16(Halves k, reg a) { return _mm256_andnot_si256(k, a); }
  static reg add16(reg a, reg b) { return _mm256_add_epi16(a, b); }
  static reg sub16(reg a, reg b) { return _mm256_sub_epi16(a, b); }
  static uint32_t bits16(Halves k) {
    return _pext_u32(uint32_t(_mm256_movemask_epi8(k)), 0x55555555u);
  }

 private:
  static bool all_ones(reg a) { return _mm256_movemask_epi8(a) == -1; }
  static reg two(const uint8_t* low, const uint8_t* high) {
    return _mm256_loadu2_m128i((const __m128i*)high, (const __m128i*)low);
  }
  // 4 x 4 of each half of the registers.
  static void transpose(reg a, reg b, reg c, reg d, reg (&out)[4]) {
    reg ab = _mm256_unpacklo_epi32(a, b), AB = _mm256_unpackhi_epi32(a, b);
    reg cd = _mm256_unpacklo_epi32(c, d), CD = _mm256_unpackhi_epi32(c, d);
    out[0] = _mm256_unpacklo_epi64(ab, cd);
    out[1] = _mm256_unpackhi_epi64(ab, cd);
    out[2] = _mm256_unpacklo_epi64(AB, CD);
    out[3] = _mm256_unpackhi_epi64(AB, CD);
  }
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
  static reg shl(const reg& a, int n) {
    return each([&](int i) { return a.v[i] << n; });
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
  static void load_quads(const uint8_t* p, reg (&out)[4]) {
    for (int lane = 0; lane < W; ++lane)
      for (int i = 0; i < 4; ++i) memcpy(&out[i].v[lane], p + 16 * lane + 4 * i, 4);
  }
  static void store_quads(uint8_t* p, const reg (&in)[4]) {
    for (int lane = 0; lane < W; ++lane)
      for (int i = 0; i < 4; ++i) memcpy(p + 16 * lane + 4 * i, &in[i].v[lane], 4);
  }

  using Halves = reg;  // all bits of a half, or none
  static constexpr uint32_t kAllHalves = 0xffff;
  static Halves both16(const Halves& a, const Halves& b) { return and_(a, b); }
  static Halves either16(const Halves& a, const Halves& b) { return or_(a, b); }
  static Halves none16(const reg& a, uint32_t bits) {
    const reg some = and_(a, set1(bits));
    return each16(some, some, [](uint16_t h, uint16_t) { return h ? 0 : 0xffff; });
  }
  static Halves below16(const reg& a, uint16_t b) {
    return each16(a, a, [b](uint16_t h, uint16_t) { return h < b ? 0xffff : 0; });
  }
  static reg keep16(const Halves& k, const reg& a) { return and_(k, a); }
  static reg drop16(const Halves& k, const reg& a) {
    return each([&](int i) { return ~k.v[i] & a.v[i]; });
  }
  static reg add16(const reg& a, const reg& b) {
    return each16(a, b, [](uint16_t x, uint16_t y) { return x + y; });
  }
  static reg sub16(const reg& a, const reg& b) {
    return each16(a, b, [](uint16_t x, uint16_t y) { return x - y; });
  }
  static uint32_t bits16(const Halves& k) {
    uint32_t bits = 0;
    for (int i = 0; i < W; ++i) bits |= ((k.v[i] & 1) | (k.v[i] >> 31) << 1) << 2 * i;
    return bits;
  }

 private:
  template <class F>
  static reg each16(const reg& a, const reg& b, F&& f) {
    uint16_t x[2 * W], y[2 * W];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 2 * W; ++i) x[i] = uint16_t(f(x[i], y[i]));
    reg r;
    memcpy(&r, x, sizeof r);
    return r;
  }
};

#endif

// Quads of all lanes, [32 lanes][4], to [4][32 lanes].
CLLM_INLINE void transpose_quads(const uint8_t* from, uint32_t* to) {
  for (int lane = 0; lane < kLanes; lane += V::W) {
    V::reg quads[4];
    V::load_quads(from + 16 * lane, quads);
    for (int i = 0; i < 4; ++i) V::store(to + kLanes * i + lane, quads[i]);
  }
}

}  // namespace
}  // namespace codecllm
