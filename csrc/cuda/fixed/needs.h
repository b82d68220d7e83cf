// What the source of `fixed` asks of a block: nothing but warps. Tiles are read from global memory
// as they lie. Host code.
#pragma once
#include "../block.h"

namespace codecllm::cuda {

inline SourceNeeds fixed_needs() {
  SourceNeeds needs = {};
  // Memory is the limit: 12 bits a weight at the 20 bytes per clock that a processor of an H200
  // gets. Instructions would allow a quarter of that time (docs/kernels.md).
  needs.ways[needs.n_ways++] = {0, 1.5 / 20};
  // A warp has two units of 1.5 KB under way. To hide 800 clocks of latency at 20 bytes per clock
  // takes 16 KB, five or six warps; some are at the borders of their tiles.
  needs.busy_warps = 8;
  return needs;
}

}  // namespace codecllm::cuda
