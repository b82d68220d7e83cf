#include "to_fixed.h"

#include <stdlib.h>

#include <algorithm>

namespace codecllm {

FixedEntries::~FixedEntries() { free(data_); }

void FixedEntries::add(uint32_t entry) {
  if (size_ == room_) {
    const int64_t room = room_ ? 2 * room_ : 64;
    void* grown = realloc(data_, size_t(room) * sizeof *data_);
    if (!grown) {
      out_of_memory_ = true;
      return;
    }
    data_ = (uint32_t*)grown;
    room_ = room;
  }
  data_[size_++] = entry;
}

int32_t FixedEntries::close_tile() {
  std::sort(data_ + tile_, data_ + size_);  // the position is the upper half
  const int64_t count = size_ - tile_;
  tile_ = size_;
  return int32_t(count);
}

}  // namespace codecllm
