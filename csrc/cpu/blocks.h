// The walk over a thread's tiles. Tile rows [begin, end) are taken two at a time; a block is two
// tiles, one above the other (the last row of tiles may be alone):
//
//                  col tile 0   1   2
//   tile row begin     .---. .---. .---.
//                      | 1 | | 2 | | 3 |     a block is decoded while the next one is fetched;
//                      |   | |   | |   |     after the last one of a row of blocks its rows are
//                      '---' '---' '---'     done: sums over all columns are complete
//                      .---. .---. .---.
//                      | 4 | | 5 | | 6 |
//   tile row end - 1   |   | |   | |   |
//                      '---' '---' '---'
//
// Decoded pairs stay in the thread's scratch, in the first-level cache.
#pragma once
#include <utility>

#include "kernels.h"
#include "scratch.h"

namespace codecllm {
namespace {

template <Source S>
struct Block {
  typename S::Tile tile[kTilesAtOnce];
  int count;
};

// Calls use(block, prefetch) for every block, row of blocks by row of blocks; done(block) after the
// last one of a row.
template <Source S, class Use, class Done>
inline Status for_blocks(S& source, const CodedView& view, int64_t begin, int64_t end, Use&& use,
                         Done&& done) {
  if (begin >= end || view.col_tiles == 0) return {};
  Block<S> blocks[2], *current = &blocks[0], *next = &blocks[1];
  const auto locate = [&](int64_t row, int64_t col, Block<S>& block) -> Status {
    block.count = row + 1 < end ? 2 : 1;
    for (int t = 0; t < block.count; ++t)
      if (!source.locate(row + t, col, block.tile[t]))
        return {Corruption::index, block.tile[t].number};
    return {};
  };
  if (Status found = locate(begin, 0, *current); !found) return found;
  for (int64_t row = begin, col = 0; row < end; std::swap(current, next)) {
    const bool last = col + 1 == view.col_tiles;
    const int64_t next_row = last ? row + kTilesAtOnce : row, next_col = last ? 0 : col + 1;
    typename S::Prefetch prefetch[kTilesAtOnce] = {};
    if (next_row < end) {
      if (Status found = locate(next_row, next_col, *next); !found) return found;
      for (int t = 0; t < next->count; ++t) prefetch[t] = source.prefetch(next->tile[t]);
    }
    if (!use(*current, prefetch)) return {Corruption::stream, current->tile[0].number};
    if (last) done(*current);
    row = next_row;
    col = next_col;
  }
  return {};
}

template <Source S, class Sink>
CLLM_INLINE bool decode_block(S& source, const Block<S>& block,
                              const typename S::Prefetch* prefetch, Sink& sink) {
  if (block.count == 1) return source.template decode<1>(block.tile, prefetch, sink);
  return source.template decode<2>(block.tile, prefetch, sink);
}

// ---- pairs in scratch ---------------------------------------------------------------------------

// Keeps pair registers in lane order: [group][j][lane].
struct StorePairs {
  uint32_t *const *pairs, *const *low;
  bool has_low;

  CLLM_INLINE void put(int t, int c, int g, int j, V::reg pair, V::reg lows) {
    const int at = (kPairsPerGroup * g + j) * kLanes + c * V::W;
    V::store(pairs[t] + at, pair);
    if (has_low) V::store(low[t] + at, lows);
  }
};

// The final pairs of a block; `low`: the low halves of 32-bit words.
template <Source S>
inline bool decode_to_pairs(S& source, const Block<S>& block, const typename S::Prefetch* prefetch,
                            uint32_t* const* pairs, uint32_t* const* low) {
  StorePairs sink{pairs, low, S::Format::fmt.word_bits == 32};
  if (!decode_block(source, block, prefetch, sink)) return false;
  if (source.has_second_pass())
    for (int t = 0; t < block.count; ++t) source.second_pass(block.tile[t], pairs[t]);
  return true;
}
template <Source S>
inline bool decode_to_scratch(S& source, const Block<S>& block,
                              const typename S::Prefetch* prefetch, const Scratch& scratch) {
  return decode_to_pairs(source, block, prefetch, scratch.pairs, scratch.low);
}

}  // namespace
}  // namespace codecllm
