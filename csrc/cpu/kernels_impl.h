// decode and linear for one instruction set; included once per kernels_*.cpp.
#pragma once
#include "decode_tile.h"
#include "kernels.h"
#include "to_float.h"

namespace codecllm {
namespace {

// Scratch of a thread, for two tiles.
struct Scratch {
  uint32_t* raw[2];
  uint32_t* pairs[2];
  uint32_t* low[2];
  float* sums;  // [tile][row half][m][32 lanes]

  Scratch(const CodedView& view, uint8_t* at) {
    int groups = view.groups(0);
    int64_t pair_bytes = int64_t(groups) * kPairsPerGroup * kLanes * 4;
    for (auto& p : raw) p = (uint32_t*)at, at += view.raw_tile_bytes;
    for (auto& p : pairs) p = (uint32_t*)at, at += pair_bytes;
    for (auto& p : low) p = (uint32_t*)at, at += pair_bytes;
    sums = (float*)at;
  }
};

// Calls use(tiles, count) for the tiles of rows [begin, end), two at a time, column by column;
// done(tiles, count) after the last column of a row of tiles.
template <class F, class Use, class Done>
inline Status for_tiles(const CodedView& view, int64_t begin, int64_t end, Use&& use, Done&& done) {
  Tile tiles[2][2];  // [current or next][tile]
  int64_t segment[2] = {0, 0};
  Prefetch prefetch[2];
  auto get = [&](int64_t row, int64_t col, Tile* out) {
    for (int t = 0; t < 2 && row + t < end; ++t)
      if (!locate(view, row + t, col, segment[t], out[t])) return out[t].number;
    return int64_t(-1);
  };
  if (begin >= end || view.col_tiles == 0) return {};
  int64_t bad = get(begin, 0, tiles[0]);
  if (bad >= 0) return {Corruption::index, bad};
  int now = 0;
  for (int64_t row = begin; row < end; row += 2) {
    int count = row + 1 < end ? 2 : 1;
    for (int64_t col = 0; col < view.col_tiles; ++col, now ^= 1) {
      prefetch[0] = prefetch[1] = {};
      bool last = col + 1 == view.col_tiles;
      int64_t next_row = last ? row + 2 : row, next_col = last ? 0 : col + 1;
      if (next_row < end) {
        bad = get(next_row, next_col, tiles[now ^ 1]);
        if (bad >= 0) return {Corruption::index, bad};
        for (int t = 0; t < 2; ++t)
          if (next_row + t < end)
            prefetch[t] =
                Prefetch(tiles[now ^ 1][t], raw_tile_bytes(F::fmt, tiles[now ^ 1][0].groups));
      }
      if (!use(tiles[now], count, prefetch)) return {Corruption::stream, tiles[now][0].number};
      if (last) done(tiles[now], count);
    }
  }
  return {};
}

template <class F, class Sink>
inline bool decode_into(const CodedView& view, const Tile* tiles, int count,
                        const Prefetch* prefetch, const Scratch& s, Sink& sink) {
  for (int t = 0; t < count; ++t) unpack_raw<F>(tiles[t], prefetch[t], s.raw[t]);
  if (count == 1) return decode_tiles<F, 1>(tiles, view.scale_bits, s.raw, sink);
  return decode_tiles<F, 2>(tiles, view.scale_bits, s.raw, sink);
}

template <class F>
inline bool decode_to_pairs(const CodedView& view, const Tile* tiles, int count,
                            const Prefetch* prefetch, const Scratch& s) {
  StorePairs sink{{s.pairs[0], s.pairs[1]}, {s.low[0], s.low[1]}, F::fmt.word_bits == 32};
  if (!decode_into<F>(view, tiles, count, prefetch, s, sink)) return false;
  if (view.predictor)
    for (int t = 0; t < count; ++t) undo_left<F>(tiles[t], s.pairs[t]);
  return true;
}

// ---- decode -------------------------------------------------------------------------------------

// Eight columns (one 16-byte run of halves) as words of the output.
template <class F>
inline __attribute__((always_inline)) void write_run(const uint32_t* pairs, const uint32_t* low,
                                                     uint8_t* out) {
  if constexpr (F::fmt.word_bits == 16) {
    memcpy(out, pairs, 16);
  } else {
    uint16_t h[8], l[8];
    memcpy(h, pairs, 16);
    if constexpr (F::fmt.word_bits == 32) {
      uint32_t w[8];
      memcpy(l, low, 16);
      for (int i = 0; i < 8; ++i) w[i] = uint32_t(h[i]) << 16 | l[i];
      memcpy(out, w, 32);
    } else {
      uint8_t w[8];
      for (int i = 0; i < 8; ++i) w[i] = uint8_t(h[i]);
      memcpy(out, w, 8);
    }
  }
}

// Lane order to row-major: the four lanes of a row hold eight neighbouring columns.
template <class F>
inline void write_rows(const CodedView& view, const Tile& tile, const uint32_t* pairs,
                       const uint32_t* low, int64_t row0, uint8_t* out) {
  constexpr int kBytes = F::fmt.word_bytes();
  int64_t first = tile.number % view.col_tiles * view.tile_cols;
  int64_t left = view.cols - first;
  int64_t cols = left < 16 * int64_t(tile.groups) ? left : 16 * int64_t(tile.groups);
  for (int row = 0; row < tile.rows; ++row) {
    uint8_t* to = out + ((tile.out_row + row - row0) * view.cols + first) * kBytes;
    for (int64_t col = 0; col < cols; col += 8) {
      int64_t j = row / 8 + 2 * (col / 8 % 2);
      int64_t at = (4 * (col / 16) + j) * kLanes + row % 8 * 4;
      if (col + 8 <= cols) {
        write_run<F>(pairs + at, low + at, to + col * kBytes);
      } else {
        uint8_t run[8 * kBytes];
        write_run<F>(pairs + at, low + at, run);
        memcpy(to + col * kBytes, run, size_t(cols - col) * kBytes);
      }
    }
  }
}

Status decode_rows_of_tiles(const CodedView& view, int64_t begin, int64_t end, uint8_t* out,
                            uint8_t* scratch) {
  Status status;
  with_format(view.format, [&](auto f) {
    using F = decltype(f);
    Scratch s(view, scratch);
    status = for_tiles<F>(
        view, begin, end,
        [&](const Tile* tiles, int count, const Prefetch* prefetch) {
          if (!decode_to_pairs<F>(view, tiles, count, prefetch, s)) return false;
          for (int t = 0; t < count; ++t)
            write_rows<F>(view, tiles[t], s.pairs[t], s.low[t], 0, out);
          return true;
        },
        [](const Tile*, int) {});
  });
  return status;
}

// Pair registers of one dtype from pair registers of a weight format, in place.
template <class F, class To>
inline void convert_pairs(const Tile& tile, uint32_t* pairs, uint32_t* low, const float* scale,
                          bool per_row) {
  float factor[2][kLanes];  // [row half][lane]
  for (int h = 0; h < 2; ++h)
    for (int lane = 0; lane < kLanes; ++lane) {
      int row = lane / 4 + 8 * h;
      factor[h][lane] =
          !scale ? 1.f : scale[per_row ? tile.out_row + (row < tile.rows ? row : 0) : 0];
    }
  for (int i = 0; i < 4 * tile.groups; ++i)
    for (int c = 0; c < kLanes; c += kFloats) {
      uint32_t* at = pairs + i * kLanes + c;
      f32v first, second;
      to_float<F>(load_u32v(at), F::fmt.word_bits == 32 ? load_u32v(low + i * kLanes + c) : u32v{},
                  first, second);
      if (scale) {
        f32v by = load_f32v(factor[i & 1] + c);
        first *= by;
        second *= by;
      }
      if constexpr (To::fmt.word_bits == 32) {
        u32v lows = ((u32v)first & 0xffffu) | (u32v)second << 16;
        u32v highs = (u32v)first >> 16 | ((u32v)second & 0xffff0000u);
        memcpy(at, &highs, sizeof highs);
        memcpy(low + i * kLanes + c, &lows, sizeof lows);
      } else {
        u32v out = round_to<To>(first) | round_to<To>(second) << 16;
        memcpy(at, &out, sizeof out);
      }
    }
}

template <class F, class To>
inline Status decode_converted(const CodedView& view, int64_t begin, int64_t end,
                               const float* scale, bool per_row, int64_t row0, uint8_t* out,
                               uint8_t* scratch) {
  Scratch s(view, scratch);
  return for_tiles<F>(
      view, begin, end,
      [&](const Tile* tiles, int count, const Prefetch* prefetch) {
        if (!decode_to_pairs<F>(view, tiles, count, prefetch, s)) return false;
        for (int t = 0; t < count; ++t) {
          if (!kSameKind<F, To> || scale)
            convert_pairs<F, To>(tiles[t], s.pairs[t], s.low[t], scale, per_row);
          write_rows<To>(view, tiles[t], s.pairs[t], s.low[t], row0, out);
        }
        return true;
      },
      [](const Tile*, int) {});
}

Status decode_as(const CodedView& view, int64_t begin, int64_t end, Dtype dtype, const float* scale,
                 bool per_row, int64_t row0, uint8_t* out, uint8_t* scratch) {
  Status status;
  with_format(view.format, [&](auto f) {
    using F = decltype(f);
    auto run = [&](auto to) {
      status =
          decode_converted<F, decltype(to)>(view, begin, end, scale, per_row, row0, out, scratch);
    };
    switch (dtype) {
      case Dtype::f32:
        return run(Fp32{});
      case Dtype::bf16:
        return run(Bf16{});
      case Dtype::f16:
        return run(Fp16{});
    }
  });
  return status;
}

// ---- linear -------------------------------------------------------------------------------------

// sums[row half][m][lane] += pairs of one tile times a block of MB rows of x.
template <class F, int MB>
inline void dot_float(const Tile& tile, const uint32_t* pairs, const uint32_t* low, const float* x,
                      float* sums, int64_t m_stride) {
  for (int c = 0; c < kLanes; c += kFloats) {
    f32v sum[2][MB];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h)
#pragma GCC unroll 8
      for (int m = 0; m < MB; ++m) sum[h][m] = load_f32v(sums + h * m_stride + m * kLanes + c);
    const float* at = x;
    for (int half_group = 0; half_group < 2 * tile.groups; ++half_group, at += 8 * MB) {
      const int64_t i = 2 * half_group * kLanes + c;
      f32v even0, odd0, even1, odd1;  // columns of the upper and the lower row
      const bool wide = F::fmt.word_bits == 32;
      to_float<F>(load_u32v(pairs + i), wide ? load_u32v(low + i) : u32v{}, even0, odd0);
      to_float<F>(load_u32v(pairs + i + kLanes), wide ? load_u32v(low + i + kLanes) : u32v{}, even1,
                  odd1);
#pragma GCC unroll 8
      for (int m = 0; m < MB; ++m) {
        f32v even = repeat4(at + 8 * m), odd = repeat4(at + 8 * m + 4);
        sum[0][m] += even0 * even;
        sum[0][m] += odd0 * odd;
        sum[1][m] += even1 * even;
        sum[1][m] += odd1 * odd;
      }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h)
#pragma GCC unroll 8
      for (int m = 0; m < MB; ++m) store_f32v(sums + h * m_stride + m * kLanes + c, sum[h][m]);
  }
}

#ifdef __AVX512BF16__
inline __attribute__((always_inline)) __m512bh repeat4_bf16(const uint16_t* x) {
  return (__m512bh)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)x));
}

template <int MB>
inline void dot_bf16(const Tile& tile, const uint32_t* pairs, const uint16_t* x, float* sums,
                     int64_t m_stride) {
  for (int c = 0; c < kLanes; c += 16) {
    __m512 sum[2][MB];
#pragma GCC unroll 8
    for (int m = 0; m < MB; ++m)
      for (int h = 0; h < 2; ++h) sum[h][m] = _mm512_loadu_ps(sums + h * m_stride + m * kLanes + c);
    const uint16_t* at = x;
    for (int g = 0; g < tile.groups; ++g) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half, at += 8 * MB) {
        const uint32_t* w = pairs + (4 * g + 2 * half) * kLanes + c;
        __m512bh w0 = (__m512bh)_mm512_loadu_si512(w);
        __m512bh w1 = (__m512bh)_mm512_loadu_si512(w + kLanes);
#pragma GCC unroll 8
        for (int m = 0; m < MB; ++m) {
          __m512bh xm = repeat4_bf16(at + 8 * m);
          sum[0][m] = _mm512_dpbf16_ps(sum[0][m], w0, xm);
          sum[1][m] = _mm512_dpbf16_ps(sum[1][m], w1, xm);
        }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MB; ++m)
      for (int h = 0; h < 2; ++h) _mm512_storeu_ps(sums + h * m_stride + m * kLanes + c, sum[h][m]);
  }
}

// One row of x: pairs are multiplied in the registers they were decoded in.
struct DotSink {
  const uint16_t* x;
  __m512 sum[2][kChunks][2];

  inline __attribute__((always_inline)) void put(int t, int c, int g, int j, V::reg pair, V::reg) {
    __m512bh xg = repeat4_bf16(x + 16 * g + 8 * (j >> 1));
    sum[t][c][j & 1] = _mm512_dpbf16_ps(sum[t][c][j & 1], (__m512bh)pair, xg);
  }
};
#endif

// Adds the lanes of each row, applies scale and bias, writes out[m, rows of the tile].
inline void finish(const Tile& tile, const float* sums, const LinearArgs& a) {
  for (int64_t m = 0; m < a.m; ++m)
    for (int row = 0; row < tile.rows; ++row) {
      const float* s = sums + (row / 8 * a.m + m) * kLanes + row % 8 * 4;
      int64_t n = tile.out_row + row;
      float v = (s[0] + s[1]) + (s[2] + s[3]);
      if (a.scale) v *= a.scale[a.scale_per_row ? n : 0];
      if (a.bias) v += load_float(a.bias, a.dtype, n);
      store_float(a.out, a.dtype, m * a.n + n, v);
    }
}

template <class F, int MB>
inline void dot_block(const Tile& tile, const Scratch& s, int t, const LinearArgs& a, int64_t m,
                      int64_t k_padded, int64_t first_col, float* sums) {
  int64_t at = m * k_padded + first_col * MB;
#ifdef __AVX512BF16__
  if constexpr (kSameKind<F, Bf16>)
    if (a.x_is_bf16)
      return dot_bf16<MB>(tile, s.pairs[t], (const uint16_t*)a.x + at, sums + m * kLanes,
                          a.m * kLanes);
#endif
  dot_float<F, MB>(tile, s.pairs[t], s.low[t], (const float*)a.x + at, sums + m * kLanes,
                   a.m * kLanes);
}

Status linear(const CodedView& view, int64_t begin, int64_t end, const LinearArgs& a,
              uint8_t* scratch) {
  Status status;
  with_format(view.format, [&](auto f) {
    using F = decltype(f);
    Scratch s(view, scratch);
    const int64_t k_padded = ceil_div(view.cols, kGroupCols) * kGroupCols;
    const int64_t tile_sums = 2 * a.m * kLanes;
    auto first_col = [&](const Tile& t) { return t.number % view.col_tiles * view.tile_cols; };
    auto clear = [&] { memset(s.sums, 0, size_t(2 * tile_sums) * sizeof(float)); };
    auto done = [&](const Tile* tiles, int count) {
      for (int t = 0; t < count; ++t) finish(tiles[t], s.sums + t * tile_sums, a);
      clear();
    };
    clear();
#ifdef __AVX512BF16__
    if (kSameKind<F, Bf16> && a.x_is_bf16 && a.m == 1 && !view.predictor) {
      auto use = [&](const Tile* tiles, int count, const Prefetch* prefetch) {
        DotSink sink;
        sink.x = (const uint16_t*)a.x + first_col(tiles[0]);
        auto each = [&](auto&& move) {
#pragma GCC unroll 2
          for (int t = 0; t < 2; ++t)
#pragma GCC unroll 2
            for (int c = 0; c < kChunks; ++c)
#pragma GCC unroll 2
              for (int h = 0; h < 2; ++h)
                move(sink.sum[t][c][h], s.sums + t * tile_sums + h * kLanes + c * V::W);
        };
        each([](__m512& sum, float* p) { sum = _mm512_loadu_ps(p); });
        if (!decode_into<F>(view, tiles, count, prefetch, s, sink)) return false;
        each([](__m512& sum, float* p) { _mm512_storeu_ps(p, sum); });
        return true;
      };
      status = for_tiles<F>(view, begin, end, use, done);
      return;
    }
#endif
    auto use = [&](const Tile* tiles, int count, const Prefetch* prefetch) {
      if (!decode_to_pairs<F>(view, tiles, count, prefetch, s)) return false;
      int64_t col = first_col(tiles[0]);
      for (int64_t m = 0; m < a.m;) {
        int rows = block_rows(m, a.m);
        for (int t = 0; t < count; ++t) {
          float* sums = s.sums + t * tile_sums;
          switch (rows) {
            case 8:
              dot_block<F, 8>(tiles[t], s, t, a, m, k_padded, col, sums);
              break;
            case 4:
              dot_block<F, 4>(tiles[t], s, t, a, m, k_padded, col, sums);
              break;
            case 2:
              dot_block<F, 2>(tiles[t], s, t, a, m, k_padded, col, sums);
              break;
            default:
              dot_block<F, 1>(tiles[t], s, t, a, m, k_padded, col, sums);
          }
        }
        m += rows;
      }
      return true;
    };
    status = for_tiles<F>(view, begin, end, use, done);
  });
  return status;
}

}  // namespace
}  // namespace codecllm
