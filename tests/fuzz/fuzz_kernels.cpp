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
// * transcoded to fixed, a matrix decodes to the same words;
// * undamaged matrices decode to what was encoded.
//
// Built with CLLM_MORE_FORMATS (run.py) it has formats that the project does not have: one without
// raw bits, and a float of another kind, of which more than the exponent is coded.
#include "coded_matrix.h"

extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

namespace {

// ---- damage -------------------------------------------------------------------------------------

template <class T>
void flip_bit(Random& random, std::vector<T>& v) {
  if (!v.empty()) v[size_t(random.below(int64_t(v.size())))] ^= T(1) << random.below(8 * sizeof(T));
}

template <class T>
T& any_of(Random& random, std::vector<T>& v) {
  return v[size_t(random.below(int64_t(v.size())))];
}

void damage_fixed(Random& random, Coded& c) {
  for (int64_t n = 1 + random.below(random.of({1, 4, 30})); n > 0; --n) {
    switch (random.below(8)) {
      case 0:
        flip_bit(random, c.stream);
        break;
      case 1:
        flip_bit(random, c.raw);
        break;
      case 2:
        flip_bit(random, c.index);
        break;
      case 3:  // any end
        if (!c.index.empty())
          any_of(random, c.index) =
              random.of({uint32_t(random.next()), uint32_t(random.below(64)), ~0u, 1u << 31, 0u});
        break;
      case 4:  // the window base or what stands beside it, not where a segment's rows begin
        c.table[size_t(kTableHeader * random.below(c.view.segments) + random.below(2))] =
            random.of({uint32_t(random.next()), 0u, ~0u, 240u, 255u});
        break;
      case 5:  // a shorter list
        c.raw.resize(size_t(random.below(int64_t(c.raw.size()) + 1)) / kListedBytes * kListedBytes);
        break;
      case 6:  // entries of nonsense
        for (size_t i = 0; i < c.raw.size() && random.one_in(2); ++i)
          any_of(random, c.raw) = uint8_t(random.next());
        break;
      default:  // a run of nonsense
        if (!c.stream.empty())
          for (int64_t at = random.below(int64_t(c.stream.size())), i = 0;
               i < 40 && at + i < int64_t(c.stream.size()); ++i)
            c.stream[size_t(at + i)] = uint8_t(random.next());
    }
  }
}

void damage(Random& random, Coded& c) {
  if (c.view.coding == Coding::fixed) return damage_fixed(random, c);
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
    view.raw_bytes = int64_t(raw.size());
    view.index = index.as<uint32_t>();
    view.table = table.as<uint32_t>();
  }
};

// Whether two kernels say the same of a matrix. Decoding to words takes tiles of coding fixed in
// another order than other kernels, so that of several lies it may meet another one first.
bool agree(const CodedView& view, const Status& a, const Status& b) {
  return view.coding == Coding::fixed ? bool(a) == bool(b) : a.what == b.what;
}

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
    if (x.size() && random.one_in(4)) x.data()[random.below(int64_t(x.size()))] = 0x7f;
    int exponent;
    const Exponents of_x = exponents(dtype, x.data(), 0, m * view.cols);
    const LinearPath path = choose_path(k, view, dtype, m, of_x, exponent);
    Buffer packed(size_t(packed_bytes(path, m, view.cols, as_bf16)), any_kind(random));
    pack_x(path, x.data(), dtype, m, view.cols, as_bf16, exponent, 0, m, packed.data());
    Buffer bias(size_t(view.rows) * element, any_kind(random));
    memset(bias.data(), 0, bias.size());
    Buffer out(size_t(m * view.rows) * element, any_kind(random));
    Buffer scratch = scratch_for(random, view, m);
    const void* any_bias = random.one_in(2) ? bias.data() : nullptr;
    LinearArgs args = {path,   packed.data(), as_bf16,    exponent, m,
                       scales, any_bias,      out.data(), dtype,    view.rows};
    s = k.linear(view, range.begin, range.end, args, scratch.data());
    // These do not look at what the plane has in the place of code 0: check_fixed does.
    if (path != LinearPath::tiles && status.what == Corruption::stream) return;
  }
  if (whole) REQUIRE(agree(view, s, status));
  if (status) REQUIRE(bool(s));
}

// Any matrix of bfloat16 as coding fixed, with other tiles and windows: the same words again.
void check_to_fixed(Random& random, const CodedView& view, Buffer& whole, const Status& status) {
  if (view.format != Bf16::fmt.id) return;
  current_call = "to_fixed";
  std::vector<int32_t> bases(size_t(view.segments));
  for (int32_t& base : bases) base = int32_t(random.below(kMaxFixedBase + 1));
  const int tile_cols = any_fixed_tile_cols(random);
  AsFixed made = to_fixed(random, any_kernels(random), view, bases, tile_cols);
  REQUIRE(agree(view, made.status, status));
  if (!status) return;
  std::vector<uint32_t> table;
  for (int64_t s = 0; s < view.segments; ++s) {
    table.insert(table.end(), view.segment(s), view.segment(s) + kTableHeader);
    table[size_t(s * kTableHeader + kWindowBase)] = uint32_t(bases[size_t(s)]);
  }
  CodedView v = view;
  v.coding = Coding::fixed;
  v.stream = made.plane.data();
  v.stream_bytes = int64_t(made.plane.size());
  v.raw = made.list.data();
  v.raw_bytes = int64_t(made.list.size());
  v.index = made.ends.data();
  v.table = table.data();
  v.table_stride = kTableHeader;
  v.tile_cols = tile_cols;
  v.derive();
  REQUIRE(bool(any_kernels(random).check_fixed(v, 0, v.tile_rows)));
  Status again;
  const Range everything = {0, v.tile_rows, 0, v.rows};
  Buffer words = decoded(random, any_kernels(random), v, 2, everything, again);
  REQUIRE(bool(again));
  if (words.size()) REQUIRE(!memcmp(words.data(), whole.data(), words.size()));
}

// All instruction sets find the same first lie; and one at least where decoding finds one.
void check_lies(Random& random, const CodedView& view, const Status& status, bool intact) {
  if (view.coding != Coding::fixed) return;
  current_call = "check_fixed";
  const Status first = any_kernels(random).check_fixed(view, 0, view.tile_rows);
  for (const Kernels* const* k = all_kernels(); *k; ++k)
    if ((*k)->supported()) {
      const Status found = (*k)->check_fixed(view, 0, view.tile_rows);
      REQUIRE(found.what == first.what && found.tile == first.tile);
    }
  if (intact) REQUIRE(bool(first));
  if (!status) REQUIRE(!first);
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
  check_to_fixed(random, view, expected, first);
  check_lies(random, view, first, intact);
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
