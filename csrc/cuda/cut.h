// How a linear_mma launch is cut into blocks: one for each processor, as large as it can be. A cut
// is the cheapest by a small model of the source, rounds of tiles and partial sums.
#pragma once
#include <algorithm>

#include "block.h"

namespace codecllm::cuda {

struct Cut {
  // The launch.
  int64_t x_rows, limit;         // rows of x; shared memory of a block, bytes
  int64_t tile_rows, col_tiles;  // of the matrix
  int64_t cols, processors;
  int64_t x_bytes, sums_bytes;  // of one column tile; of one tile
  int busy_warps;               // of the source
  // The choice.
  BlockLayout block;
  double clocks;                        // of the way, per weight
  int64_t chunks = 1, chunk_tiles = 0;  // chunks of column tiles, tiles in each
  int64_t band_rows = 1;

  int64_t blocks() const { return std::min(tile_rows, std::max<int64_t>(1, processors / chunks)); }
  int64_t share() const { return ceil_div(tile_rows, blocks()); }  // tile rows of a block
  bool fits() {
    const int64_t kernel_bytes = chunk_tiles * (x_bytes + band_rows * sums_bytes);
    const int64_t bytes = int64_t(block.common_bytes) + kernel_bytes +
                          int64_t(block.warps) * block.warp_bytes + block.reserve_bytes;
    if (bytes > limit) return false;
    block.kernel_bytes = int(kernel_bytes);
    return true;
  }
  // Rounds in which the warps take the tiles of a share, a band at a time.
  int64_t rounds() const {
    const int64_t whole = share() / band_rows, rest = share() % band_rows;
    return whole * ceil_div(band_rows * chunk_tiles, block.warps) +
           ceil_div(rest * chunk_tiles, block.warps);
  }
  // As many warps as have work and room; false if not even one has.
  bool choose_warps(int most) {
    block.warps = int(std::min<int64_t>(most, share() * chunk_tiles));
    for (; block.warps > 0; --block.warps) {
      band_rows = std::min(share(), ceil_div(block.warps, chunk_tiles));
      if (fits()) return true;
    }
    return false;
  }
  // The fewest rounds; among equals the most rows, which means the fewest barriers.
  void choose_band() {
    Cut best = *this;
    const int64_t most = std::min(share(), band_rows + 4 * block.warps);
    for (++band_rows; band_rows <= most && fits(); ++band_rows)
      if (rounds() <= best.rounds()) best = *this;
    *this = best;
  }
  // Clocks per weight of a processor. Partial sums go to the second-level cache and come back, at
  // about 20 bytes per clock.
  double cost() const {
    const int64_t waves = ceil_div(blocks() * chunks, processors);
    const double tiles = double(waves * rounds()) * std::max(busy_warps, block.warps);
    const double ideal = double(tile_rows) * double(col_tiles) / double(processors);
    const double partial = chunks > 1 ? 8.0 * double(chunks * x_rows) / double(cols) / 20 : 0;
    return clocks * tiles / ideal + partial;
  }
};

}  // namespace codecllm::cuda
