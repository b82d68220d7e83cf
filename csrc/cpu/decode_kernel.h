// decode: a block of tiles to the rows of the output, as words of the coded format or converted to
// a dtype of activations.
//
//   scratch, lane order                                          out [rows, cols], row-major
//   group 0          group 1
//   j=0 j=1 j=2 j=3  j=0 ...                                       columns 0..7   8..15  16..
//   [32][32][32][32] [32] pair registers                 row 0     lanes 0..3,    same,  next
//    |   '- rows 8..15                                             j = 0          j = 2  group
//    '- rows 0..7, four lanes a row, two columns a pair  row 8     lanes 0..3,    same,
//                                                                  j = 1          j = 3
//
//   for_blocks: decode_to_scratch -> convert_pairs (if another dtype is wanted) -> write_rows
#pragma once
#include "../core/scale.h"
#include "blocks.h"
#include "to_float.h"
#include "words.h"

namespace codecllm {
namespace {

// One tile to the output, which begins at row `row0` of the matrix. `stream`: past the caches,
// words of 16 bits only.
template <class F>
inline void write_rows(const CodedView& view, const TilePlace& tile, const uint32_t* pairs,
                       const uint32_t* low, int64_t row0, uint8_t* out, bool stream = false) {
  for (int row = 0; row < tile.rows; ++row) {
    const int64_t to = (tile.out_row + row - row0) * view.cols + tile.first_col;
    const int from = pair_at(row, 0);
    uint8_t* words = out + to * F::fmt.word_bytes();
    int col = 0;
    if (F::fmt.word_bits == 16 && stream)
      for (; col + 8 <= tile.cols; col += 8)
        V::stream_run(words + 2 * col, pairs + from + col / 8 * kRunsApart);
    const int at = from + col / 8 * kRunsApart;
    write_words<F>(pairs + at, low + at, kRunsApart, tile.cols - col,
                   words + col * F::fmt.word_bytes());
  }
}

// Words of the coded format from a source that writes rows itself; `out` begins at row `row0`.
template <WritesRows S>
inline Status decode_rows_at_once(S& source, const CodedView& view, int64_t begin, int64_t end,
                                  int64_t row0, uint8_t* out, bool stream) {
  constexpr int64_t kWordBytes = S::Format::fmt.word_bytes();
  const auto use = [&](const Block<S>& block, const typename S::Prefetch* prefetch) {
    const TilePlace& tile = block.tile[0];
    const int64_t first = (tile.out_row - row0) * view.cols + tile.first_col;
    return source.write_rows(block.tile[0], prefetch[0], out + kWordBytes * first,
                             kWordBytes * view.cols, stream);
  };
  // One row of tiles at a time: two would fill the first-level cache with what is asked for ahead
  // (a fifth slower).
  Status status;
  for (int64_t row = begin; row < end && status; ++row)
    status = for_blocks(source, view, row, row + 1, use, [](const Block<S>&) {});
  if (stream) V::fence();
  return status;
}

// Whether a matrix is written past the caches: every tile's rows begin at a cache line.
template <class F>
inline bool streams(const CodedView& view, const uint8_t* out) {
  constexpr int64_t kLine = 64;
  const int64_t row_bytes = view.cols * F::fmt.word_bytes();
  return view.rows * row_bytes >= kStreamFrom && intptr_t(out) % kLine == 0 &&
         row_bytes % kLine == 0 && view.tile_cols * F::fmt.word_bytes() % kLine == 0;
}

// Decodes words of the coded format.
inline Status decode(const CodedView& view, int64_t begin, int64_t end, uint8_t* out,
                     uint8_t* at_scratch) {
  const Scratch scratch(view, at_scratch);
  return with_source(view, scratch.source, [&](auto& source) {
    using S = std::remove_reference_t<decltype(source)>;
    if constexpr (WritesRows<S>) {
      return decode_rows_at_once(source, view, begin, end, 0, out,
                                 streams<typename S::Format>(view, out));
    }
    const bool stream = streams<typename S::Format>(view, out);
    const auto use = [&](const Block<S>& block, const typename S::Prefetch* prefetch) {
      if (!decode_to_scratch(source, block, prefetch, scratch)) return false;
      for (int t = 0; t < block.count; ++t)
        write_rows<typename S::Format>(view, block.tile[t], scratch.pairs[t], scratch.low[t], 0,
                                       out, stream);
      return true;
    };
    const Status status = for_blocks(source, view, begin, end, use, [](const Block<S>&) {});
    if (stream) V::fence();
    return status;
  });
}

// Pair registers of format `To` from those of format F, in place.
template <class F, class To>
inline void convert_pairs(const TilePlace& tile, uint32_t* pairs, uint32_t* low,
                          const Scale& scale) {
  float factor[2][kLanes];  // [row half][lane]; rows outside the matrix have none
  for (int half = 0; half < 2; ++half)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4 + 8 * half;
      factor[half][lane] = row < tile.rows ? scale.of_row(tile.out_row + row) : 0.f;
    }
  for (int i = 0; i < kPairsPerGroup * tile.groups; ++i)
    for (int c = 0; c < kLanes; c += kFloats) {
      uint32_t *at = pairs + i * kLanes + c, *low_at = low + i * kLanes + c;
      f32v first, second;
      to_float<F>(load_u32v(at), F::fmt.word_bits == 32 ? load_u32v(low_at) : u32v{}, first,
                  second);
      if (scale) {
        const f32v by = load_f32v(factor[i & 1] + c);
        first *= by;
        second *= by;
      }
      if constexpr (To::fmt.word_bits == 32) {
        const u32v lows = ((u32v)first & 0xffffu) | (u32v)second << 16;
        const u32v highs = (u32v)first >> 16 | ((u32v)second & 0xffff0000u);
        memcpy(at, &highs, sizeof highs);
        memcpy(low_at, &lows, sizeof lows);
      } else {
        const u32v out = round_to<To>(first) | round_to<To>(second) << 16;
        memcpy(at, &out, sizeof out);
      }
    }
}

template <class To, Source S>
inline Status decode_converted(S& source, const CodedView& view, int64_t begin, int64_t end,
                               const Scale& scale, int64_t row0, uint8_t* out,
                               const Scratch& scratch) {
  using F = typename S::Format;
  if constexpr (WritesRows<S> && kSameKind<F, To>)
    if (!scale) return decode_rows_at_once(source, view, begin, end, row0, out, false);
  const auto use = [&](const Block<S>& block, const typename S::Prefetch* prefetch) {
    if (!decode_to_scratch(source, block, prefetch, scratch)) return false;
    for (int t = 0; t < block.count; ++t) {
      if (!kSameKind<F, To> || scale)
        convert_pairs<F, To>(block.tile[t], scratch.pairs[t], scratch.low[t], scale);
      write_rows<To>(view, block.tile[t], scratch.pairs[t], scratch.low[t], row0, out);
    }
    return true;
  };
  return for_blocks(source, view, begin, end, use, [](const Block<S>&) {});
}

inline Status decode_as(const CodedView& view, int64_t begin, int64_t end, Dtype dtype,
                        const Scale& scale, int64_t row0, uint8_t* out, uint8_t* at_scratch) {
  const Scratch scratch(view, at_scratch);
  return with_source(view, scratch.source, [&](auto& source) {
    Status status;
    with_activation(dtype, [&](auto to) {
      status = decode_converted<decltype(to)>(source, view, begin, end, scale, row0, out, scratch);
    });
    return status;
  });
}

}  // namespace
}  // namespace codecllm
