// Shared memory of a block, and what a source asks of it. Plain data for host and device.
#pragma once
#include "../core/coded_view.h"

namespace codecllm::cuda {

// 24 warps hide a decode step's latency and leave 80 registers to a thread: without spills, and the
// main loop is two instructions shorter than with 64 (docs/kernels.md).
constexpr int kMaxWarps = 24;
constexpr int kMmaSizes = 7;  // linear_mma exists for 1, 2, 4, .. 64 rows of x
constexpr int kMaxFusedRows = 1 << (kMmaSizes - 1);  // rows of x that a fused kernel takes

// From the first byte: what warps have in common, the kernel's own part, a buffer per warp, and a
// reserve that a corrupt stream may read. All are multiples of 16 bytes.
struct BlockLayout {
  int warps;
  int way;           // which of the source's ways to have something in common
  int common_bytes;  // what it takes
  int kernel_bytes;
  int warp_bytes;
  int reserve_bytes;

  CLLM_HD int warps_at() const { return common_bytes + kernel_bytes; }
  CLLM_HD int bytes() const { return warps_at() + warps * warp_bytes + reserve_bytes; }
};

// What a source asks of a block's shared memory. There may be several ways to have something in
// common, each larger and faster than the one before.
struct SourceNeeds {
  struct Way {
    int bytes;
    double clocks;  // of a processor, per weight: what the source alone allows
  };
  static constexpr int kMaxWays = 5;
  Way ways[kMaxWays];
  int n_ways;
  int warp_bytes;  // of a warp that runs well; a source works with less
  int reserve_bytes;
  int busy_warps;  // so many keep a processor busy; fewer wait for latencies
};

inline int round_up(int64_t bytes, int step) { return int(ceil_div(bytes, step) * step); }

}  // namespace codecllm::cuda
