// linear: out [M, N] = x [M, K] times the transposed weight [N, K]. Decoded weights live in
// registers and the first-level cache only.
//
//   pairs of a tile [group][j][lane]    x, packed: per block of 8, 4, 2 or 1 rows, half group by
//    lane 0..3: row 0 (j & 1: row 8)    half group, the 8 columns that the lanes meet
//    lane 4..7: row 1 ...               (pack_x of kernels.h)
//
//   sums [tile][row half][row of x][lane] += pairs * x, over all column tiles; at the end of a row
//   of tiles `finish` adds the four lanes of each row, then scale, bias, rounding.
//
//   for_blocks: decode_to_scratch -> for_row_blocks: dot (both tiles, every row of x) -> finish
//   one row of x with AVX-512 BF16: pairs are multiplied in the registers they were decoded in
#pragma once
#include "blocks.h"
#include "linear_fixed.h"
#include "to_float.h"

namespace codecllm {
namespace {

// ---- products -----------------------------------------------------------------------------------

// sums[row half][row of x][lane] += pairs of one tile times a block of Rows rows of x.
// half_stride: floats from one half of the tile's rows to the other.
template <class F, int Rows>
inline void dot_float(const TilePlace& tile, const uint32_t* pairs, const uint32_t* low,
                      const float* x, float* sums, int64_t half_stride) {
  constexpr bool kWide = F::fmt.word_bits == 32;
  for (int c = 0; c < kLanes; c += kFloats) {
    f32v sum[2][Rows];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row)
        sum[half][row] = load_f32v(sums + half * half_stride + row * kLanes + c);
    const float* x_at = x;
    for (int half_group = 0; half_group < 2 * tile.groups; ++half_group, x_at += 8 * Rows) {
      const int64_t upper = 2 * half_group * kLanes + c, lower = upper + kLanes;
      f32v upper_even, upper_odd, lower_even, lower_odd;  // columns
      to_float<F>(load_u32v(pairs + upper), kWide ? load_u32v(low + upper) : u32v{}, upper_even,
                  upper_odd);
      to_float<F>(load_u32v(pairs + lower), kWide ? load_u32v(low + lower) : u32v{}, lower_even,
                  lower_odd);
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row) {
        const f32v even = repeat4(x_at + 8 * row), odd = repeat4(x_at + 8 * row + 4);
        sum[0][row] += upper_even * even;
        sum[0][row] += upper_odd * odd;
        sum[1][row] += lower_even * even;
        sum[1][row] += lower_odd * odd;
      }
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row)
        store_f32v(sums + half * half_stride + row * kLanes + c, sum[half][row]);
  }
}

#ifdef __AVX512BF16__
CLLM_INLINE __m512bh repeat4_bf16(const uint16_t* x) {
  return (__m512bh)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)x));
}

// The same for bfloat16 times bfloat16.
template <int Rows>
inline void dot_bf16(const TilePlace& tile, const uint32_t* pairs, const uint16_t* x, float* sums,
                     int64_t half_stride) {
  for (int c = 0; c < kLanes; c += 16) {
    __m512 sum[2][Rows];
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row)
      for (int half = 0; half < 2; ++half)
        sum[half][row] = _mm512_loadu_ps(sums + half * half_stride + row * kLanes + c);
    const uint16_t* x_at = x;
    for (int group = 0; group < tile.groups; ++group) {
#pragma GCC unroll 2
      for (int half_group = 0; half_group < 2; ++half_group, x_at += 8 * Rows) {
        const uint32_t* at = pairs + (kPairsPerGroup * group + 2 * half_group) * kLanes + c;
        const __m512bh upper = (__m512bh)_mm512_loadu_si512(at);
        const __m512bh lower = (__m512bh)_mm512_loadu_si512(at + kLanes);
#pragma GCC unroll 8
        for (int row = 0; row < Rows; ++row) {
          const __m512bh x_row = repeat4_bf16(x_at + 8 * row);
          sum[0][row] = _mm512_dpbf16_ps(sum[0][row], upper, x_row);
          sum[1][row] = _mm512_dpbf16_ps(sum[1][row], lower, x_row);
        }
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row)
      for (int half = 0; half < 2; ++half)
        _mm512_storeu_ps(sums + half * half_stride + row * kLanes + c, sum[half][row]);
  }
}

// One row of x: pairs are multiplied in the registers they were decoded in.
struct DotSink {
  const uint16_t* x;
  __m512 sum[kTilesAtOnce][kChunks][2];  // [tile][chunk][row half]

  CLLM_INLINE void load(const float* sums) {
    each([&](__m512& sum, int at) { sum = _mm512_loadu_ps(sums + at); });
  }
  CLLM_INLINE void store(float* sums) {
    each([&](__m512& sum, int at) { _mm512_storeu_ps(sums + at, sum); });
  }
  CLLM_INLINE void put(int t, int c, int g, int j, V::reg pair, V::reg) {
    const __m512bh columns = repeat4_bf16(x + kGroupCols * g + 8 * (j >> 1));
    sum[t][c][j & 1] = _mm512_dpbf16_ps(sum[t][c][j & 1], (__m512bh)pair, columns);
  }

 private:
  template <class Each>
  CLLM_INLINE void each(Each&& f) {
#pragma GCC unroll 2
    for (int t = 0; t < kTilesAtOnce; ++t)
#pragma GCC unroll 2
      for (int c = 0; c < kChunks; ++c)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) f(sum[t][c][half], (2 * t + half) * kLanes + c * V::W);
  }
};
#endif

// ---- the kernel ---------------------------------------------------------------------------------

// Calls f(constant, first) for the blocks of rows in which x is packed: how many, from which on.
template <class Each>
inline void for_row_blocks(int64_t m, Each&& f) {
  for (int64_t first = 0; first < m;) {
    const int rows = block_rows(LinearPath::tiles, first, m);
    switch (rows) {
      case 8:
        f(std::integral_constant<int, 8>{}, first);
        break;
      case 4:
        f(std::integral_constant<int, 4>{}, first);
        break;
      case 2:
        f(std::integral_constant<int, 2>{}, first);
        break;
      default:
        f(std::integral_constant<int, 1>{}, first);
    }
    first += rows;
  }
}

// One decoded tile times one block of rows of x; `x_at`: where in the packed x.
template <class F, int Rows>
inline void dot(const TilePlace& tile, const uint32_t* pairs, const uint32_t* low,
                const LinearArgs& args, int64_t x_at, float* sums) {
  const int64_t half_stride = args.m * kLanes;
#ifdef __AVX512BF16__
  if constexpr (kSameKind<F, Bf16>)
    if (args.x_is_bf16)
      return dot_bf16<Rows>(tile, pairs, (const uint16_t*)args.x + x_at, sums, half_stride);
#endif
  dot_float<F, Rows>(tile, pairs, low, (const float*)args.x + x_at, sums, half_stride);
}

// Adds the lanes of each row, applies scale and bias, writes out[m, rows of the tile].
inline void finish(const TilePlace& tile, const float* sums, const LinearArgs& args) {
  for (int64_t x_row = 0; x_row < args.m; ++x_row)
    for (int row = 0; row < tile.rows; ++row) {
      const float* lanes = sums + (row / 8 * args.m + x_row) * kLanes + row % 8 * 4;
      const int64_t n = tile.out_row + row;
      float value = args.scale.apply((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]), n);
      if (args.bias) value += load_float(args.bias, args.dtype, n);
      store_float(args.out, args.dtype, x_row * args.n + n, value);
    }
}

inline Status linear(const CodedView& view, int64_t begin, int64_t end, const LinearArgs& args,
                     uint8_t* at_scratch) {
#ifdef __AVX2__
  if (args.path == LinearPath::fixed_registers)
    return linear_fixed_registers(view, begin, end, args);
#endif
#ifdef __AVX512BF16__
  if (args.path == LinearPath::fixed_scaled)
    return linear_fixed_blocks<true>(view, begin, end, args, at_scratch);
  if (args.path == LinearPath::fixed_blocks)
    return linear_fixed_blocks<false>(view, begin, end, args, at_scratch);
#endif
  const Scratch scratch(view, at_scratch);
  const int64_t padded_cols = packed_cols(args.path, view.cols);
  const int64_t tile_sums = Scratch::tile_sums(args.m);
  return with_source(view, scratch.source, [&](auto& source) {
    using S = std::remove_reference_t<decltype(source)>;
    using F = typename S::Format;
    const auto clear = [&] {
      memset(scratch.sums, 0, size_t(kTilesAtOnce * tile_sums) * sizeof(float));
    };
    const auto done = [&](const Block<S>& block) {
      for (int t = 0; t < block.count; ++t)
        finish(block.tile[t], scratch.sums + t * tile_sums, args);
      clear();
    };
    clear();
#ifdef __AVX512BF16__
    if constexpr (kSameKind<F, Bf16>) {
      const auto in_registers = [&](const Block<S>& block, const typename S::Prefetch* prefetch) {
        DotSink sink;
        sink.x = (const uint16_t*)args.x + block.tile[0].first_col;
        sink.load(scratch.sums);
        if (!decode_block(source, block, prefetch, sink)) return false;
        sink.store(scratch.sums);
        return true;
      };
      if (args.x_is_bf16 && args.m == 1 && !source.has_second_pass())
        return for_blocks(source, view, begin, end, in_registers, done);
    }
#endif
    const auto from_scratch = [&](const Block<S>& block, const typename S::Prefetch* prefetch) {
      if (!decode_to_scratch(source, block, prefetch, scratch)) return false;
      for_row_blocks(args.m, [&](auto rows, int64_t first) {
        for (int t = 0; t < block.count; ++t)
          dot<F, decltype(rows)::value>(
              block.tile[t], scratch.pairs[t], scratch.low[t], args,
              first * padded_cols + block.tile[t].first_col * decltype(rows)::value,
              scratch.sums + t * tile_sums + first * kLanes);
      });
      return true;
    };
    return for_blocks(source, view, begin, end, from_scratch, done);
  });
}

}  // namespace
}  // namespace codecllm
