#include "kernels.h"

#include <atomic>

namespace codecllm {

static const Kernels* const kAll[] = {
#ifndef CLLM_NO_X86
    &kAvx512Bf16, &kAvx512, &kAvx2,
#endif
    &kPortable, nullptr};

static std::atomic<const Kernels*> chosen{nullptr};

const Kernels* const* all_kernels() { return kAll; }

static const Kernels* fastest() {
  const Kernels* const* k = kAll;
  while (!(*k)->supported()) ++k;
  return *k;
}

const Kernels& kernels() {
  const Kernels* k = chosen.load(std::memory_order_acquire);
  if (!k) chosen.store(k = fastest(), std::memory_order_release);
  return *k;
}

bool select_kernels(const char* name) {
  if (!*name) return chosen.store(fastest()), true;
  for (const Kernels* const* k = kAll; *k; ++k)
    if (!strcmp((*k)->name, name) && (*k)->supported()) return chosen.store(*k), true;
  return false;
}

int64_t scratch_bytes(const CodedView& view, int64_t m) {
  int64_t pairs = int64_t(view.groups(0)) * kPairsPerGroup * kLanes * 4;
  int64_t sums = 2 * 2 * m * kLanes * int64_t(sizeof(float));
  return 2 * (view.raw_tile_bytes + 2 * pairs) + sums;
}

int64_t first_row(const CodedView& view, int64_t tile_row) {
  for (int64_t s = view.segments - 1; s >= 0; --s) {
    const uint32_t* h = view.segment(s);
    if (h[kFirstTileRow] > tile_row || h[kRows] == 0) continue;
    int64_t in_segment = (tile_row - h[kFirstTileRow]) * kTileRows;
    return h[kFirstRow] + (in_segment < h[kRows] ? in_segment : int64_t(h[kRows]));
  }
  return 0;
}

// ---- floats -------------------------------------------------------------------------------------

static float as_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static uint32_t as_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

static float half_to_float(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = uint32_t(h & 0x7fff) << 13;
  if (magnitude >= 31u << 23) return as_float(sign | magnitude | 0x7f800000);
  if (magnitude < 1u << 23) {
    float tiny = as_float(magnitude | 113u << 23) - as_float(113u << 23);
    return as_float(sign | as_bits(tiny));
  }
  return as_float(sign | (magnitude + (112u << 23)));
}

// Round to nearest, ties to even.
static uint16_t float_to_half(float f) {
  uint32_t bits = as_bits(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (magnitude < 113u << 23) {
    // Adding 0.5 leaves the rounded subnormal in the low mantissa bits.
    return uint16_t(sign | (as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f)));
  }
  uint32_t odd = magnitude >> 13 & 1;
  return uint16_t(sign | (magnitude - (112u << 23) + 0xfff + odd) >> 13);
}

static uint16_t float_to_bf16(float f) {
  uint32_t bits = as_bits(f);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float load_float(const void* p, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::f32:
      return ((const float*)p)[i];
    case Dtype::bf16:
      return as_float(uint32_t(((const uint16_t*)p)[i]) << 16);
    default:
      return half_to_float(((const uint16_t*)p)[i]);
  }
}

void store_float(void* p, Dtype dtype, int64_t i, float v) {
  switch (dtype) {
    case Dtype::f32:
      ((float*)p)[i] = v;
      break;
    case Dtype::bf16:
      ((uint16_t*)p)[i] = float_to_bf16(v);
      break;
    default:
      ((uint16_t*)p)[i] = float_to_half(v);
  }
}

void pack_x(const void* x, Dtype dtype, int64_t m, int64_t k, bool as_bf16, void* out) {
  const int64_t padded = ceil_div(k, kGroupCols) * kGroupCols;
  for (int64_t first = 0; first < m;) {
    int rows = block_rows(first, m);
    for (int r = 0; r < rows; ++r)
      for (int64_t c = 0; c < padded; c += 8) {
        int64_t from = (first + r) * k + c, to = first * padded + c * rows + 8 * r;
        int valid = int(k - c < 0 ? 0 : k - c < 8 ? k - c : 8);
        if (as_bf16) {
          uint16_t* o = (uint16_t*)out + to;
          memset(o, 0, 16);
          memcpy(o, (const uint16_t*)x + from, size_t(valid) * 2);
        } else {
          float* o = (float*)out + to;
          for (int i = 0; i < 8; ++i)
            o[(i & 1) * 4 + i / 2] = i < valid ? load_float(x, dtype, from + i) : 0.f;
        }
      }
    first += rows;
  }
}

// ---- rows ---------------------------------------------------------------------------------------

namespace {

// The pairs of one lane, group by group: words[2 * group + half] of the pairs with that j & 1.
template <class F>
bool decode_lane(const CodedView& view, const Tile& tile, int lane, int row_half, uint32_t* pairs,
                 uint32_t* low) {
  constexpr WeightFormat fmt = F::fmt;
  const uint32_t slot_mask = (1u << view.scale_bits) - 1;
  const uint32_t base = tile.window_base * 0x10001u << fmt.coded_shift;
  uint32_t at = tile.start[lane];
  uint32_t x = load_word(tile, at);
  x |= load_word(tile, at + 1) << 16;
  at += 2;
  for (int g = 0; g < tile.groups; ++g) {
    uint32_t entry[4], fields[4];
    for (int j = 0; j < 4; ++j) {
      entry[j] = tile.slots[x & slot_mask];
      x = rans_advance<Scalar>(x, entry[j], view.scale_bits);
      if (x < kRansL) x = x << 16 | load_word(tile, at++);
      fields[j] = coded_fields<Scalar, fmt.coded_shift>(entry[j]) + base;
    }
    for (int j = 0; j < 4; ++j)
      if (entry[j] >= kEscapeFrom)
        fields[j] = literal_fields(load_word(tile, at++), fmt.value_mask(), fmt.coded_shift);
    for (int half = 0; half < 2; ++half) {
      int n = 4 * g + 2 * half + row_half;
      uint32_t pair = fields[2 * half + row_half];
      const uint8_t* plane = tile.raw;
      for (int p = 0; p < fmt.n_planes; ++p) {
        int bits = fmt.planes[p].bits, count = containers(bits, tile.groups);
        int i = n / (16 / bits), by = n % (16 / bits) * bits;
        uint32_t r;
        memcpy(&r, plane + 4 * int64_t(container_at(i, lane, count)), 4);
        plane += 4 * int64_t(count) * kLanes;
        if (fmt.planes[p].low_half) {
          low[2 * g + half] = r;
        } else {
          pair |= (r >> by | r << (-by & 31)) & fmt.planes[p].mask;
        }
      }
      pairs[2 * g + half] = pair ^ fmt.flip;
    }
  }
  return x == kRansL && at == tile.end[lane];
}

template <class F>
void write_word(uint8_t* out, int64_t i, uint32_t high, uint32_t low) {
  if constexpr (F::fmt.word_bits == 32) {
    uint32_t w = high << 16 | low;
    memcpy(out + 4 * i, &w, 4);
  } else if constexpr (F::fmt.word_bits == 16) {
    uint16_t w = uint16_t(high);
    memcpy(out + 2 * i, &w, 2);
  } else {
    out[i] = uint8_t(high);
  }
}

template <class F>
Status decode_row(const CodedView& view, int64_t row, uint8_t* out) {
  constexpr WeightFormat fmt = F::fmt;
  int64_t segment = 0;
  while (segment + 1 < view.segments && view.segment(segment + 1)[kFirstRow] <= row) ++segment;
  const uint32_t* header = view.segment(segment);
  int64_t in_segment = row - header[kFirstRow];
  int64_t tile_row = header[kFirstTileRow] + in_segment / kTileRows;
  int row_in_tile = int(in_segment % kTileRows), row_half = row_in_tile / 8;
  constexpr int kMaxHalfGroups = 2 * kMaxTileCols / kGroupCols;
  uint32_t pairs[4][kMaxHalfGroups], low[4][kMaxHalfGroups];
  for (int64_t col_tile = 0; col_tile < view.col_tiles; ++col_tile) {
    Tile tile;
    int64_t from = segment;
    if (!locate(view, tile_row, col_tile, from, tile)) return {Corruption::index, tile.number};
    for (int t = 0; t < 4; ++t)
      if (!decode_lane<F>(view, tile, row_in_tile % 8 * 4 + t, row_half, pairs[t], low[t]))
        return {Corruption::stream, tile.number};
    int64_t first = col_tile * view.tile_cols;
    int64_t cols = view.cols - first < view.tile_cols ? view.cols - first : view.tile_cols;
    const uint32_t mask = fmt.value_mask(), half = 1u << (fmt.coded_bits - 1);
    uint32_t value = tile.seed;
    for (int64_t c = 0; c < cols; ++c) {
      int64_t i = c / 8;
      int t = int(c % 8 / 2), shift = 16 * int(c & 1);
      uint32_t word = pairs[t][i] >> shift & 0xffff;
      if (view.predictor) {
        uint32_t flip = fmt.flip >> fmt.coded_shift & mask;
        value = (value + ((word >> fmt.coded_shift & mask) ^ flip) - half) & mask;
        word = (word & ~(mask << fmt.coded_shift)) | (value ^ flip) << fmt.coded_shift;
      }
      uint32_t low_word = fmt.word_bits == 32 ? low[t][i] >> shift & 0xffff : 0;
      write_word<F>(out, first + c, word, low_word);
    }
  }
  return {};
}

}  // namespace

Status decode_rows(const CodedView& view, const int64_t* ids, int64_t begin, int64_t end,
                   uint8_t* out) {
  Status status;
  with_format(view.format, [&](auto f) {
    using F = decltype(f);
    for (int64_t n = begin; n < end && status; ++n)
      status = decode_row<F>(view, ids[n], out + n * view.cols * F::fmt.word_bytes());
  });
  return status;
}

}  // namespace codecllm
