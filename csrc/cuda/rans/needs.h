// What the rANS source asks of shared memory: copies of a slot table for the block, a tile's words
// for each warp. Host code.
#pragma once
#include <algorithm>

#include "../block.h"

namespace codecllm::cuda {

inline SourceNeeds rans_needs(const CodedView& matrix, int64_t most_warp_bytes) {
  SourceNeeds needs = {};
  needs.busy_warps = 15;
  // Shared memory is the limit that depends on the cut. 2^way copies of the table. Wavefronts per
  // pair of weights: 3.3 for words and what else a step does, and the slot lookup's, simulated by
  // tools/wavefronts.py.
  constexpr double kStep = 3.3, kLookup[] = {3.5, 3.5, 3.3, 2.95, 2.0};
  for (const double lookup : kLookup) {
    const int bytes = 4 << needs.n_ways << matrix.scale_bits;
    needs.ways[needs.n_ways++] = {bytes, (kStep + lookup) / 64};
  }
  // A full tile of average size, and what tiles differ. A larger tile is read from global memory,
  // so this is a matter of speed only. In coarse steps: layers of one shape shall share a plan.
  const int64_t padded = ceil_div(matrix.cols, kGroupCols) * kGroupCols;
  const double average =
      double(matrix.stream_bytes) * matrix.tile_cols / (double(matrix.tile_rows) * padded);
  const int64_t wanted = std::min(int64_t(average * 1.08), most_warp_bytes) + 256;
  needs.warp_bytes = int(std::min<int64_t>(round_up(wanted, 128), round_up(most_warp_bytes, 16)));
  // What a corrupt lane reads beyond its warp's buffer at most: two words of state, the word ahead,
  // and 8 words per group.
  needs.reserve_bytes = round_up(2 * (3 + 8 * int64_t(matrix.tile_cols / kGroupCols)), 16);
  return needs;
}

}  // namespace codecllm::cuda
