// Coding as fixed: what the kernels write to (to_fixed_kernel.h). No torch.
#pragma once
#include <stdint.h>

namespace codecllm {

// The entries of a row of tiles, tile by tile. It grows in to_fixed.cpp, which is compiled for
// every machine: what the standard library instantiates in a kernel file, the linker may take for
// all of them.
class FixedEntries {
 public:
  FixedEntries() = default;
  FixedEntries(const FixedEntries&) = delete;
  FixedEntries& operator=(const FixedEntries&) = delete;
  ~FixedEntries();

  // Of the tile that is open.
  void add(uint32_t entry);
  // Sorts its entries by position, and opens the next tile. Returns how many they are.
  int32_t close_tile();

  const uint32_t* data() const { return data_; }
  int64_t size() const { return size_; }
  bool out_of_memory() const { return out_of_memory_; }

 private:
  uint32_t* data_ = nullptr;
  int64_t size_ = 0, room_ = 0, tile_ = 0;
  bool out_of_memory_ = false;
};

struct FixedTarget {
  const int32_t* bases;  // [segments], window bases
  int tile_cols;
  uint8_t* plane;         // [tile rows, bytes of a row of tiles]
  int32_t* counts;        // [tile rows, column tiles], entries of each tile
  FixedEntries* entries;  // [tile rows]
};

}  // namespace codecllm
