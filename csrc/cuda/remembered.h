// A small map from what something depends on to what was made of it, for any number of threads.
#pragma once
#include <array>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

namespace codecllm::cuda {

// A value may be made twice, and is equal then. A map that outgrows `Most` begins anew: shapes are
// few.
template <size_t KeySize, class Value, size_t Most = 4096>
class Remembered {
 public:
  using Key = std::array<int64_t, KeySize>;

  bool find(const Key& key, Value& value) const {
    const std::shared_lock<std::shared_mutex> lock(mutex_);
    const auto found = map_.find(key);
    if (found == map_.end()) return false;
    value = found->second;
    return true;
  }
  void remember(const Key& key, const Value& value) {
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    if (map_.size() >= Most) map_.clear();
    map_.insert_or_assign(key, value);
  }

 private:
  struct Hash {
    size_t operator()(const Key& key) const {
      uint64_t h = 0;
      for (const int64_t part : key) {
        h = (h ^ uint64_t(part)) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
      }
      return size_t(h);
    }
  };
  mutable std::shared_mutex mutex_;
  std::unordered_map<Key, Value, Hash> map_;
};

}  // namespace codecllm::cuda
