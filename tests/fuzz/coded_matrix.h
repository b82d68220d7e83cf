// What a case of fuzz_kernels.cpp is made of: random numbers, buffers that notice an access
// outside, and small matrices that the real encoder has coded.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

#include "cpu/encode.h"
#include "cpu/kernels.h"

using namespace codecllm;

namespace {

long long current_case = -1;
const char* current_call = "";

void report() { fprintf(stderr, "while: case %lld, %s\n", current_case, current_call); }

#define REQUIRE(condition)                                                          \
  do {                                                                              \
    if (!(condition)) {                                                             \
      fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      report();                                                                     \
      exit(1);                                                                      \
    }                                                                               \
  } while (0)

// ---- randomness ---------------------------------------------------------------------------------

struct Random {  // splitmix64
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return n <= 0 ? 0 : int64_t(next() % uint64_t(n)); }
  bool one_in(int64_t n) { return below(n) == 0; }
  template <class T>
  T of(std::initializer_list<T> values) {
    return values.begin()[below(int64_t(values.size()))];
  }
};

// ---- buffers ------------------------------------------------------------------------------------

// Exactly `size` bytes; reading one more is an error that is noticed.
class Buffer {
 public:
  enum Kind { heap, before_a_wall, after_a_wall };

  Buffer() = default;
  Buffer(size_t size, Kind kind, size_t align = 16) : size_(size), kind_(kind) {
    if (kind == heap) {
      if (posix_memalign((void**)&data_, align, size)) abort();
      return;
    }
    size_t page = size_t(sysconf(_SC_PAGESIZE));
    pages_ = (size + page - 1) / page * page + page;
    char* all =
        (char*)mmap(nullptr, pages_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) abort();
    bool wall_first = kind == after_a_wall;
    if (mprotect(wall_first ? all : all + pages_ - page, page, PROT_NONE)) abort();
    mapped_ = all;
    data_ = (uint8_t*)(wall_first ? all + page : all + pages_ - page - size);
  }
  Buffer(const void* from, size_t size, Kind kind) : Buffer(size, kind) {
    if (size) memcpy(data_, from, size);
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    std::swap(pages_, other.pages_);
    std::swap(kind_, other.kind_);
    return *this;
  }
  ~Buffer() {
    if (mapped_) {
      munmap(mapped_, pages_);
    } else if (kind_ == heap) {
      free(data_);
    }
  }
  uint8_t* data() { return data_; }
  size_t size() const { return size_; }
  template <class T>
  T* as() {
    return (T*)data_;
  }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  char* mapped_ = nullptr;
  size_t pages_ = 0;
  Kind kind_ = heap;
};

Buffer::Kind any_kind(Random& random) {
  return random.of({Buffer::heap, Buffer::before_a_wall, Buffer::after_a_wall});
}

// ---- a coded matrix -----------------------------------------------------------------------------

struct Coded {
  CodedView view = {};
  std::vector<uint8_t> stream, raw, words;  // words: what was encoded
  std::vector<uint32_t> index, table;
  int word_bytes = 0;
};

// What csrc/torch/coded_args.h derives.
void derive(Coded& c) {
  CodedView& v = c.view;
  v.table_stride = kTableHeader + (int64_t(1) << v.scale_bits);
  v.tile_rows = 0;
  for (int64_t s = 0; s < v.segments; ++s) {
    const uint32_t* h = c.table.data() + s * v.table_stride;
    v.tile_rows += ceil_div(h[kRows], kTileRows);
  }
  v.derive();
}

int any_format(Random& random) {
  std::vector<int> ids;
  for_each_format([&](auto f) { ids.push_back(f.fmt.id); });
  return ids[size_t(random.below(int64_t(ids.size())))];
}

// Random words whose coded values are spread over `spread` values, with some anywhere.
std::vector<uint8_t> random_words(Random& random, const WeightFormat& f, int64_t n) {
  const int bytes = f.word_bytes();
  std::vector<uint8_t> words(size_t(n * bytes));
  const uint32_t mask = f.value_mask(), base = uint32_t(random.next()) & mask;
  const int64_t spread = random.of({1, 3, 8, 20, 256}), far = random.of({3, 40, 1000000});
  for (int64_t i = 0; i < n; ++i) {
    uint32_t w = uint32_t(random.next());
    if (!random.one_in(far)) {
      uint32_t value = (base + uint32_t(random.below(spread))) & mask;
      int shift = f.coded_shift + (f.word_bits == 32 ? 16 : 0);
      w = (w & ~(mask << shift)) | value << shift;
    }
    w ^= f.flip;
    memcpy(words.data() + i * bytes, &w, size_t(bytes));
  }
  return words;
}

// A window, and a frequency for some of the pairs inside it.
struct Plan {
  uint32_t window_base = 0;
  std::vector<int64_t> pairs, freqs;
};

Plan make_plan(Random& random, const DenseView& dense, int scale_bits) {
  std::vector<int64_t> counts(65536, 0), values(256, 0);
  count_pairs(dense, 0, ceil_div(dense.rows, kTileRows), counts.data());
  for (int64_t p = 0; p < 65536; ++p) values[size_t(p & 255)] += counts[size_t(p)];
  int64_t mode = std::max_element(values.begin(), values.end()) - values.begin();
  Plan plan;
  plan.window_base = uint32_t(std::max<int64_t>(0, mode - random.below(20)));
  std::vector<std::pair<int64_t, int64_t>> found;  // count, id
  for (int64_t r1 = 0; r1 < 256; ++r1)
    for (int64_t r0 = 0; r0 < 256; ++r0) {
      int64_t n = counts[size_t(r0 | r1 << 8)];
      int64_t i0 = r0 - plan.window_base, i1 = r1 - plan.window_base;
      if (n && i0 >= 0 && i1 >= 0 && i0 < kEscapeIndex && i1 < kEscapeIndex)
        found.push_back({n, 32 * i0 + i1});
    }
  if (found.empty()) found.push_back({1, 0});
  std::sort(found.rbegin(), found.rend());
  int64_t total = int64_t(1) << scale_bits, keep = 1 + random.below(total - 1);
  if (int64_t(found.size()) > keep) found.resize(size_t(keep));
  std::sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.second < b.second; });
  int64_t left = total - 1 - int64_t(found.size()), sum = 0;
  for (auto& [n, id] : found) sum += n;
  for (auto& [n, id] : found) {
    plan.pairs.push_back(id);
    plan.freqs.push_back(1 + left * n / sum * 7 / 8);
  }
  return plan;
}

void add_slots(Coded& c, const Plan& plan, int64_t rows, uint32_t seed, int64_t first_row) {
  const int64_t total = int64_t(1) << c.view.scale_bits;
  uint32_t header[kTableHeader] = {plan.window_base, seed, uint32_t(first_row), uint32_t(rows),
                                   uint32_t(c.view.tile_rows)};
  c.table.insert(c.table.end(), header, header + kTableHeader);
  int64_t start = 0;
  auto add = [&](int64_t id, int64_t freq) {
    for (int64_t slot = 0; slot < freq; ++slot)
      c.table.push_back(uint32_t(id >> 5 << 11 | (id & 31) << 27 | freq << 16 | slot));
    start += freq;
  };
  for (size_t i = 0; i < plan.pairs.size(); ++i) add(plan.pairs[i], plan.freqs[i]);
  add(1023, total - start);
}

struct Record {
  uint32_t offset, segment;
  int32_t lengths[kLanes];
};

void pack_index(Random& random, Coded& c, const std::vector<Record>& records) {
  int spread = 0;
  for (const Record& r : records) {
    auto [low, high] = std::minmax_element(r.lengths, r.lengths + kLanes);
    spread = std::max(spread, *high - *low);
  }
  int bits = 1;
  while (spread >> bits) ++bits;
  c.view.len_bits = bits + int(random.below(random.of({1, 17 - bits})));
  for (const Record& r : records) {
    uint32_t shortest = uint32_t(*std::min_element(r.lengths, r.lengths + kLanes));
    c.index.push_back(r.offset);
    c.index.push_back(shortest | r.segment << 16);
    std::vector<uint32_t> packed(size_t(c.view.len_bits), 0);
    for (int lane = 0; lane < kLanes; ++lane)
      for (int b = 0; b < c.view.len_bits; ++b) {
        int at = lane * c.view.len_bits + b;
        packed[size_t(at / 32)] |= ((uint32_t(r.lengths[lane]) - shortest) >> b & 1) << at % 32;
      }
    c.index.insert(c.index.end(), packed.begin(), packed.end());
  }
}

Coded make_coded(Random& random) {
  Coded c;
  CodedView& v = c.view;
  v.format = any_format(random);
  v.scale_bits = int(kMinScaleBits + random.below(4));
  v.predictor = int(random.below(2));
  v.tile_cols = int(16 * random.of({1, 1, 2, 3, 4, 7, 16, 32}));
  v.cols = 1 + random.below(random.of({20, 100, 100, 600}));
  std::vector<Record> records;
  std::vector<uint16_t> stream;
  int64_t segments = 1 + random.below(3);
  with_format(v.format, [&](auto f) {
    constexpr WeightFormat fmt = decltype(f)::fmt;
    c.word_bytes = fmt.word_bytes();
    for (int64_t s = 0; s < segments; ++s) {
      int64_t rows = random.one_in(6) ? 0 : 1 + random.below(50);
      std::vector<uint8_t> words = random_words(random, fmt, rows * v.cols);
      DenseView dense = {words.data(), rows, v.cols, v.format, v.tile_cols, v.predictor, 0};
      dense.pad_value = uint32_t(random.below(fmt.value_mask()));
      Plan plan = make_plan(random, dense, v.scale_bits);
      EncoderTables tables(plan.pairs.data(), plan.freqs.data(), int64_t(plan.pairs.size()),
                           plan.window_base, v.scale_bits);
      add_slots(c, plan, rows, dense.pad_value, v.rows);
      const int64_t raw_bytes = v.column_tiles().raw_row_bytes(fmt);
      for (int64_t t = 0; t < ceil_div(rows, kTileRows); ++t) {
        size_t at = c.raw.size();
        c.raw.resize(at + size_t(raw_bytes));
        std::vector<int32_t> lengths(size_t(ceil_div(v.cols, v.tile_cols) * kLanes));
        uint32_t offset = uint32_t(stream.size() / 8);
        encode_tile_row(dense, tables, t, stream, c.raw.data() + at, lengths.data());
        for (size_t i = 0; i < lengths.size(); i += kLanes) {
          Record r = {offset, uint32_t(s), {}};
          uint32_t words_of_tile = 0;
          for (int lane = 0; lane < kLanes; ++lane)
            words_of_tile += uint32_t(r.lengths[lane] = lengths[i + size_t(lane)]);
          offset += (words_of_tile + 7) / 8;
          records.push_back(r);
        }
      }
      c.words.insert(c.words.end(), words.begin(), words.end());
      v.rows += rows;
      v.segments = s + 1;
      derive(c);
    }
  });
  stream.resize(stream.size() + kStreamPadWords);
  c.stream.assign((uint8_t*)stream.data(), (uint8_t*)(stream.data() + stream.size()));
  pack_index(random, c, records);
  return c;
}

}  // namespace
