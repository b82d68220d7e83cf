// Sends damaged streams, indices and tables through every kernel of the CPU (no torch).
//
//   fuzz_kernels <cases> <seed>
//
// A case is a small matrix, coded by the real encoder, then damaged; sizes stay as
// csrc/torch/coded_args.h guarantees them. Proved per case:
// * no kernel reads or writes outside its buffers, which are exactly as large as promised: heap
//   blocks watched by AddressSanitizer, or pages next to forbidden ones (the sanitizer does not see
//   gathers and masked loads);
// * decode writes its own rows and nothing else;
// * all instruction sets agree: corrupt, or the same words;
// * undamaged matrices decode to what was encoded.
//
// Built with CLLM_MORE_FORMATS (run.py) it has formats that the project does not have: one without
// raw bits, and a float of another kind, of which more than the exponent is coded.
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

extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

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
  v.tile_rows = 0;
  for (int64_t s = 0; s < v.segments; ++s) {
    const uint32_t* h = c.table.data() + s * (kTableHeader + (int64_t(1) << v.scale_bits));
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

// ---- damage -------------------------------------------------------------------------------------

template <class T>
void flip_bit(Random& random, std::vector<T>& v) {
  if (!v.empty()) v[size_t(random.below(int64_t(v.size())))] ^= T(1) << random.below(8 * sizeof(T));
}

void damage(Random& random, Coded& c) {
  const int64_t record = 2 + c.view.len_bits, tiles = int64_t(c.index.size()) / record;
  const int64_t line = kTableHeader + (int64_t(1) << c.view.scale_bits);
  for (int64_t n = 1 + random.below(random.of({1, 4, 30})); n > 0; --n) {
    switch (random.below(11)) {
      case 0:
        flip_bit(random, c.stream);
        break;
      case 1:
        flip_bit(random, c.raw);
        break;
      case 2:
        flip_bit(random, c.index);
        break;
      case 3:  // any offset
        if (tiles)
          c.index[size_t(record * random.below(tiles))] =
              random.of({uint32_t(random.next()), uint32_t(random.below(64)), ~0u, 1u << 28});
        break;
      case 4:  // other lengths
        if (tiles)
          c.index[size_t(record * random.below(tiles) + 1 + random.below(record - 1))] = random.of(
              {uint32_t(random.next()), 0u, ~0u, 0x0000ffffu, uint32_t(random.below(64))});
        break;
      case 5: {  // a slot, or the window base or seed of a segment; not where its rows begin
        int64_t at = random.one_in(4) ? random.below(2) : kTableHeader + random.below(line - 8);
        c.table[size_t(line * random.below(c.view.segments) + at)] =
            random.of({uint32_t(random.next()), 0u, ~0u});
        break;
      }
      case 6: {  // a whole table of nonsense; small frequencies eat a word per step
        uint32_t keep = random.of({~0u, ~(0x7f0u << 16), ~(0x7ffu << 16)});
        for (int64_t i = 0; i < line - kTableHeader; ++i)
          c.table[size_t(kTableHeader + i)] = uint32_t(random.next()) & keep;
        break;
      }
      case 9:  // a tile of too few words that ends where the coded plane does
      case 10: {
        if (!tiles) break;
        uint32_t* r = &c.index[size_t(record * random.below(tiles))];
        uint32_t words = uint32_t(random.below(3));
        c.stream.resize(c.stream.size() / 16 * 16);
        r[0] = uint32_t(c.stream.size() / 16) - 1 - 4 * words;
        r[1] = (r[1] & 0xffff0000u) | words;
        std::fill(r + 2, r + record, 0u);
        break;
      }
      case 7:  // a shorter coded plane
        c.stream.resize(size_t(random.below(int64_t(c.stream.size()) + 1)));
        break;
      default:  // a run of nonsense
        if (!c.stream.empty())
          for (int64_t at = random.below(int64_t(c.stream.size())), i = 0;
               i < 40 && at + i < int64_t(c.stream.size()); ++i)
            c.stream[size_t(at + i)] = uint8_t(random.next());
    }
  }
}

// ---- one case -----------------------------------------------------------------------------------

// The four tensors in buffers of their own, and the view of them.
struct Loaded {
  Buffer stream, raw, index, table;
  CodedView view;

  Loaded(Random& random, Coded& c)
      : stream(c.stream.data(), c.stream.size(), any_kind(random)),
        raw(c.raw.data(), c.raw.size(), any_kind(random)),
        index(c.index.data(), 4 * c.index.size(), any_kind(random)),
        table(c.table.data(), 4 * c.table.size(), any_kind(random)),
        view(c.view) {
    view.stream = stream.data();
    view.stream_bytes = int64_t(stream.size());
    view.raw = raw.data();
    view.index = index.as<uint32_t>();
    view.table = table.as<uint32_t>();
  }
};

Buffer scratch_for(Random& random, const CodedView& view, int64_t m) {
  size_t bytes = size_t(ceil_div(scratch_bytes(view, m), 64) * 64);  // before a wall: aligned too
  Buffer scratch(bytes, any_kind(random), 64);
  memset(scratch.data(), int(random.below(256)), bytes);
  return scratch;
}

struct Range {
  int64_t begin, end, first_row, rows;
};

// Tile rows of one thread: an even first one.
Range any_range(Random& random, const CodedView& view) {
  Range r = {0, view.tile_rows, 0, view.rows};
  if (random.one_in(3)) {
    r.begin = random.below(view.tile_rows + 1) / 2 * 2;
    r.end = r.begin + random.below(view.tile_rows - r.begin + 1);
    r.first_row = first_row(view, r.begin);
    r.rows = r.end > r.begin ? first_row(view, r.end) - r.first_row : 0;
  }
  return r;
}

Buffer decoded(Random& random, const Kernels& k, const CodedView& view, int word_bytes,
               const Range& range, Status& status) {
  current_call = k.name;
  const size_t row = size_t(view.cols * word_bytes);
  Buffer out(size_t(view.rows) * row, any_kind(random));
  memset(out.data(), 0xa5, out.size());
  Buffer scratch = scratch_for(random, view, 0);
  status = k.decode(view, range.begin, range.end, out.data(), scratch.data());
  for (size_t i = 0; i < out.size(); ++i) {
    int64_t r = int64_t(i / row);
    bool inside = r >= range.first_row && r < range.first_row + range.rows;
    if (!inside) REQUIRE(out.data()[i] == 0xa5);
  }
  return out;
}

void check_rows(Random& random, const CodedView& view, Buffer& whole, const Status& status,
                int word_bytes) {
  current_call = "decode_rows";
  if (!view.rows) return;
  int64_t n = 1 + random.below(5);
  const size_t row = size_t(view.cols * word_bytes);
  Buffer ids(size_t(8 * n), Buffer::heap), out(size_t(n) * row, any_kind(random));
  for (int64_t i = 0; i < n; ++i) ids.as<int64_t>()[i] = random.below(view.rows);
  Status s = decode_rows(view, ids.as<int64_t>(), 0, n, out.data());
  if (!status) return;
  REQUIRE(bool(s));
  for (int64_t i = 0; i < n; ++i)
    REQUIRE(!memcmp(out.data() + size_t(i) * row, whole.data() + size_t(ids.as<int64_t>()[i]) * row,
                    row));
}

void check_linear(Random& random, const Kernels& k, const CodedView& view, const Status& status,
                  bool converted) {
  const Dtype dtype = random.of({Dtype::f32, Dtype::bf16, Dtype::f16});
  const size_t element = dtype == Dtype::f32 ? 4 : 2;
  const ScaleKind scale_kind = ScaleKind(random.below(kScaleKinds));
  Buffer scale(size_t(4 * Scale::count(scale_kind, view.rows)), any_kind(random));
  memset(scale.data(), 0x3f, scale.size());
  const Scale scales = Scale::of(scale_kind, scale.as<float>());
  Range range = any_range(random, view);
  const bool whole = range.begin == 0 && range.end == view.tile_rows;
  Status s;
  if (converted) {
    current_call = "decode_as";
    Buffer out(size_t(range.rows * view.cols) * element, any_kind(random));
    Buffer scratch = scratch_for(random, view, 0);
    s = k.decode_as(view, range.begin, range.end, dtype, scales, range.first_row, out.data(),
                    scratch.data());
  } else {
    current_call = "linear";
    const int64_t m = 1 + random.below(random.of({1, 3, 20}));
    const bool as_bf16 = packs_bf16(k, view, dtype);
    Buffer x(size_t(m * view.cols) * element, any_kind(random));
    for (size_t i = 0; i < x.size(); ++i) x.data()[i] = uint8_t(random.next() & 0x3f);
    Buffer packed(size_t(packed_bytes(m, view.cols, as_bf16)), any_kind(random));
    pack_x(x.data(), dtype, m, view.cols, as_bf16, packed.data());
    Buffer bias(size_t(view.rows) * element, any_kind(random));
    memset(bias.data(), 0, bias.size());
    Buffer out(size_t(m * view.rows) * element, any_kind(random));
    Buffer scratch = scratch_for(random, view, m);
    const void* any_bias = random.one_in(2) ? bias.data() : nullptr;
    LinearArgs args = {packed.data(), as_bf16, m, scales, any_bias, out.data(), dtype, view.rows};
    s = k.linear(view, range.begin, range.end, args, scratch.data());
  }
  if (whole) REQUIRE(s.what == status.what);
  if (status) REQUIRE(bool(s));
}

// Returns whether the matrix was found to be corrupt.
bool run_case(Random& random, Coded& c, bool intact) {
  Loaded loaded(random, c);
  const CodedView& view = loaded.view;
  const Range everything = {0, view.tile_rows, 0, view.rows};
  Status first, status;
  const Kernels* const* all = all_kernels();
  while (!(*all)->supported()) ++all;
  Buffer expected = decoded(random, **all, view, c.word_bytes, everything, first);
  if (intact) {
    REQUIRE(bool(first));
    REQUIRE(expected.size() == c.words.size());
    if (expected.size()) REQUIRE(!memcmp(expected.data(), c.words.data(), c.words.size()));
  }
  std::vector<const Kernels*> usable;
  for (const Kernels* const* k = all; *k; ++k) {
    if (!(*k)->supported()) continue;
    usable.push_back(*k);
    Buffer words = decoded(random, **k, view, c.word_bytes, everything, status);
    REQUIRE(status.what == first.what);
    if (status && words.size()) REQUIRE(!memcmp(words.data(), expected.data(), words.size()));
  }
  const Kernels& any = *usable[size_t(random.below(int64_t(usable.size())))];
  decoded(random, any, view, c.word_bytes, any_range(random, view), status);
  if (first) REQUIRE(bool(status));
  check_rows(random, view, expected, first, c.word_bytes);
  check_linear(random, any, view, first, true);
  check_linear(random, *usable[size_t(random.below(int64_t(usable.size())))], view, first, false);
  return !first;
}

}  // namespace

int main(int argc, char** argv) {
  const long long cases = argc > 1 ? atoll(argv[1]) : 1000;
  const uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 10) : 0;
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(report);
  constexpr long long kPerMatrix = 10;  // one of them undamaged
  long long corrupt = 0;
  Coded base;
  for (current_case = 0; current_case < cases; ++current_case) {
    current_call = "the encoder";
    Random random{seed * 0x2545f4914f6cdd1d + uint64_t(current_case)};
    random.next();
    bool intact = current_case % kPerMatrix == 0;
    if (intact) base = make_coded(random);
    Coded c = base;
    if (!intact) damage(random, c);
    corrupt += run_case(random, c, intact);
  }
  printf("%lld cases, %lld of them corrupt, no error; instruction sets:", cases, corrupt);
  for (const Kernels* const* k = all_kernels(); *k; ++k)
    if ((*k)->supported()) printf(" %s", (*k)->name);
  printf("\n");
}
