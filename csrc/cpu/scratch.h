// Scratch of a thread, for the two tiles of a block.
#pragma once
#include "sources.h"

namespace codecllm {
namespace {

struct Scratch {
  uint8_t* source;                // what the coding keeps
  uint32_t* pairs[kTilesAtOnce];  // [group][j][lane]
  uint32_t* low[kTilesAtOnce];    // the same, of 32-bit words
  float* sums;                    // [tile][row half][row of x][lane]

  Scratch(const CodedView& view, uint8_t* at) : source(at) {
    at += source_scratch_bytes(view);
    for (auto& p : pairs) p = (uint32_t*)take(at, pair_bytes(view));
    for (auto& p : low) p = (uint32_t*)take(at, pair_bytes(view));
    sums = (float*)at;
  }
  // With sums for m rows of x.
  static int64_t bytes(const CodedView& view, int64_t m) {
    return source_scratch_bytes(view) + 2 * kTilesAtOnce * pair_bytes(view) +
           kTilesAtOnce * tile_sums(m) * int64_t(sizeof(float));
  }
  // Sums of one tile.
  static int64_t tile_sums(int64_t m) { return 2 * m * kLanes; }

 private:
  static int64_t pair_bytes(const CodedView& view) {
    return int64_t(view.groups(0)) * kPairsPerGroup * kLanes * 4;
  }
  static uint8_t* take(uint8_t*& at, int64_t bytes) {
    uint8_t* from = at;
    at += bytes;
    return from;
  }
};

}  // namespace
}  // namespace codecllm
