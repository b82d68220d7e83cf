// Threads of the CPU ops, their scratch, and the first corruption that one of them met.
#pragma once
#include <stdlib.h>

#include <algorithm>
#include <mutex>
#include <new>

#include "../core/coded_view.h"
#include "compat.h"

namespace codecllm {

// First corruption that any thread met: of the lowest tile among those that were met.
class SharedStatus {
 public:
  void merge(const Status& s) {
    if (s) return;
    std::lock_guard<std::mutex> lock(mutex_);
    if (status_ || s.tile < status_.tile) status_ = s;
  }
  const Status& get() const { return status_; }

 private:
  std::mutex mutex_;
  Status status_;
};

// 64-byte aligned scratch of a thread.
class ScratchBuffer {
 public:
  explicit ScratchBuffer(int64_t bytes) : p_(aligned_alloc(64, size_t(ceil_div(bytes, 64) * 64))) {
    if (!p_) throw std::bad_alloc();
  }
  ~ScratchBuffer() { free(p_); }
  ScratchBuffer(const ScratchBuffer&) = delete;
  ScratchBuffer& operator=(const ScratchBuffer&) = delete;
  uint8_t* get() const { return (uint8_t*)p_; }

 private:
  void* p_;
};

// Runs f(begin, end, scratch) -> Status on ranges of tile rows in [first, last), in pairs of tile
// rows, each with so many bytes of scratch. Nothing throws inside (parallel_for cannot carry it):
// memory is taken before.
template <class F>
Status parallel_tile_rows(int64_t first, int64_t last, int64_t scratch_bytes, F&& f) {
  const int64_t pairs = ceil_div(last - first, 2);
  const int64_t bytes = ceil_div(scratch_bytes, 64) * 64;
  const int64_t ranges = std::min<int64_t>(pairs, torch::stable::get_num_threads());
  if (ranges <= 0) return {};
  ScratchBuffer scratch(bytes * ranges);
  if (ranges == 1) return f(first, last, scratch.get());
  SharedStatus status;
  torch::stable::parallel_for(0, ranges, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t r = lo; r < hi; ++r) {
      int64_t begin = first + 2 * (pairs * r / ranges);
      int64_t end = std::min(last, first + 2 * (pairs * (r + 1) / ranges));
      status.merge(f(begin, end, scratch.get() + bytes * r));
    }
  });
  return status.get();
}

}  // namespace codecllm
