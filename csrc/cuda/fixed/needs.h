// What the source of `fixed` asks of a block: nothing but warps. Tiles are read from global memory
// as they lie. Host code.
#pragma once
#include "../block.h"

namespace codecllm::cuda {

inline SourceNeeds fixed_needs() {
  SourceNeeds needs = {};
  // Memory is the limit: 12 bits a weight at the 16 bytes per clock that a processor of an H200
  // gets. Instructions would allow five times as many weights (docs/kernels.md).
  needs.ways[needs.n_ways++] = {0, 1.5 / 16};
  // A warp has two units of 1.5 KB under way. To hide 800 clocks of latency at 16 bytes per clock
  // takes 13 KB, four or five warps, and some are always at the borders of their tiles. Estimated.
  needs.busy_warps = 8;
  return needs;
}

}  // namespace codecllm::cuda
