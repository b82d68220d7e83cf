// The encoder: a tile in lane order, its raw plane, and its lanes as rANS words.
//
// Traps:
// * rANS is last in, first out: groups, pairs and words are coded backwards, into the end of a
//   buffer that grows towards its beginning.
// * x / freq is a multiplication by a 64-bit reciprocal: exact for every x < 2^32 and freq >= 2,
//   since the reciprocal's error of at most 1 is worth less than 2^-32 < 1 / freq. freq = 1 has no
//   64-bit reciprocal; its quotient comes out one too small and the bias makes up for it
//   (ryg_rans).
#include "encode.h"

#include <string.h>

#include "../core/rans.h"

namespace codecllm {

EncoderTables::EncoderTables(const int64_t* pairs, const int64_t* freqs, int64_t n_pairs,
                             uint32_t window_base, int scale_bits)
    : symbol_of(65536, kEscape) {
  const uint32_t total = 1u << scale_bits;
  uint32_t start = 0;
  auto set = [&](int64_t id, uint32_t freq) {
    EncoderSymbol& s = symbols[id];
    s.reciprocal = freq == 1 ? ~uint64_t(0) : uint64_t(((unsigned __int128)1 << 64) / freq) + 1;
    s.bias = freq == 1 ? start + total - 1 : start;
    s.complement = total - freq;
    s.emit_from = uint64_t(freq) << (32 - scale_bits);
    start += freq;
  };
  memset(symbols, 0, sizeof symbols);
  for (int64_t i = 0; i < n_pairs; ++i) {
    set(pairs[i], uint32_t(freqs[i]));
    uint32_t r0 = window_base + uint32_t(pairs[i] >> 5), r1 = window_base + uint32_t(pairs[i] & 31);
    symbol_of[r0 | r1 << 8] = uint16_t(pairs[i]);
  }
  set(kEscape, total - start);
}

namespace {

// A tile in lane order.
struct LaneTile {
  int groups = 0;
  std::vector<uint32_t> pairs, low;  // [group][j][lane], flipped words
  std::vector<uint16_t> residuals;   // [group][j][lane], r0 + 256 * r1
};

// Flipped words of a tile, cells outside the matrix with the coded value `pad_value`.
template <class F>
void load_words(const DenseView& m, int64_t tile_row, int64_t col_tile, LaneTile& tile) {
  constexpr WeightFormat fmt = F::fmt;
  constexpr int kBytes = fmt.word_bytes();
  const int64_t first_col = m.column_tiles().first_col(col_tile);
  const int cols = m.column_tiles().columns(col_tile);
  const uint16_t padding = uint16_t(m.pad_value << fmt.coded_shift);
  for (int row = 0; row < kTileRows; ++row) {
    const int64_t r = tile_row * kTileRows + row;
    for (int col = 0; col < kGroupCols * tile.groups; col += 8) {
      const int at = pair_at(row, col);
      const int left = r < m.rows ? cols - col : 0, valid = left < 0 ? 0 : left < 8 ? left : 8;
      const uint8_t* from = m.words + kBytes * (r * m.cols + first_col + col);
      if (fmt.word_bits == 16 && valid == 8) {
        memcpy(&tile.pairs[at], from, 16);
        continue;
      }
      uint16_t high[8], low[8] = {};
      uint32_t words[8] = {};
      for (int i = 0; i < valid; ++i) memcpy(&words[i], from + kBytes * i, kBytes);
      for (int i = 0; i < 8; ++i) {
        high[i] = uint16_t(fmt.word_bits == 32 ? words[i] >> 16 : words[i] ^ (fmt.flip & 0xffff));
        low[i] = uint16_t(words[i]);
        if (i >= valid) high[i] = padding;
      }
      memcpy(&tile.pairs[at], high, 16);
      if (fmt.word_bits == 32) memcpy(&tile.low[at], low, 16);
    }
  }
}

// Predictor `left`: what a coded value differs from that of the column before.
template <class F>
void predict_left(uint32_t pad_value, LaneTile& tile) {
  constexpr uint32_t mask = F::fmt.value_mask(), half = 1u << (F::fmt.coded_bits - 1);
  for (int row = 0; row < kTileRows; ++row) {
    uint32_t previous = pad_value;
    for (int col = 0; col < kGroupCols * tile.groups; ++col) {
      uint16_t& pair = tile.residuals[pair_at(row, col)];
      const int shift = 8 * (col & 1);
      const uint32_t value = pair >> shift & 0xff;
      pair = uint16_t((pair & ~(0xff << shift)) | ((value - previous + half) & mask) << shift);
      previous = value;
    }
  }
}

template <class F>
void load_tile(const DenseView& m, int64_t tile_row, int64_t col_tile, LaneTile& tile) {
  constexpr WeightFormat fmt = F::fmt;
  tile.groups = m.column_tiles().groups(col_tile);
  const size_t n = size_t(tile.groups) * kPairsPerGroup * kLanes;
  tile.pairs.resize(n);
  tile.residuals.resize(n);
  if (fmt.word_bits == 32) tile.low.resize(n);
  load_words<F>(m, tile_row, col_tile, tile);
  const uint32_t mask = fmt.value_mask();
  for (size_t i = 0; i < n; ++i) {
    const uint32_t p = tile.pairs[i] >> fmt.coded_shift;
    tile.residuals[i] = uint16_t((p & mask) | (p >> 16 & mask) << 8);
  }
  if (m.predictor) predict_left<F>(m.pad_value, tile);
}

template <class F>
void pack_raw(const LaneTile& tile, uint8_t* out) {
  constexpr WeightFormat fmt = F::fmt;
  for (int p = 0; p < fmt.n_planes; ++p) {
    const Plane plane = fmt.planes[p];
    const uint32_t* pairs = plane.low_half ? tile.low.data() : tile.pairs.data();
    const int per_container = 16 / plane.bits, count = containers(plane.bits, tile.groups);
    const int n_pairs = kPairsPerGroup * tile.groups;
    for (int i = 0; i < count; ++i) {
      uint32_t container[kLanes] = {};
      for (int k = 0; k < per_container && i * per_container + k < n_pairs; ++k) {
        const uint32_t* from = pairs + (i * per_container + k) * kLanes;
        const int by = plane.bits * k;
        for (int lane = 0; lane < kLanes; ++lane) {
          uint32_t bits = from[lane] & plane.mask;
          container[lane] |= bits << by | bits >> (-by & 31);
        }
      }
      for (int lane = 0; lane < kLanes; ++lane)
        memcpy(out + 4 * int64_t(container_at(i, lane, count)), &container[lane], 4);
    }
    out += 4 * int64_t(count) * kLanes;
  }
}

// Codes a tile's lanes; every lane writes downwards into its own part of `buffer`.
void encode_lanes(const LaneTile& tile, const EncoderTables& tables, std::vector<uint16_t>& buffer,
                  std::vector<uint16_t>& stream, int32_t* lengths) {
  const size_t room = 2 + 2 * size_t(kPairsPerGroup) * tile.groups;  // a word and a literal a pair
  buffer.resize(room * kLanes);
  uint32_t state[kLanes];
  uint16_t* at[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    state[lane] = kRansL;
    at[lane] = buffer.data() + room * (lane + 1);
  }
  const EncoderSymbol* const symbols = tables.symbols;
  const uint16_t* const symbol_of = tables.symbol_of.data();
  for (int g = tile.groups - 1; g >= 0; --g) {
    const uint16_t* residuals = tile.residuals.data() + size_t(g) * kPairsPerGroup * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t x = state[lane];
      uint16_t* p = at[lane];
      uint32_t id[kPairsPerGroup], escapes = 0;
      for (int j = 0; j < kPairsPerGroup; ++j) {
        id[j] = symbol_of[residuals[j * kLanes + lane]];
        escapes |= uint32_t(id[j] == kEscape) << j;
      }
      if (__builtin_expect(escapes, 0))
        for (int j = kPairsPerGroup - 1; j >= 0; --j)
          if (escapes >> j & 1) *--p = residuals[j * kLanes + lane];
      for (int j = kPairsPerGroup - 1; j >= 0; --j) {
        const EncoderSymbol& s = symbols[id[j]];
        bool emit = x >= s.emit_from;
        p[-1] = uint16_t(x);  // room for two words per pair: always inside the buffer
        p -= emit;
        x = emit ? x >> 16 : x;
        uint32_t q = uint32_t((unsigned __int128)s.reciprocal * x >> 64);
        x += s.bias + q * s.complement;
      }
      state[lane] = x;
      at[lane] = p;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    uint16_t* p = at[lane];
    *--p = uint16_t(state[lane] >> 16);
    *--p = uint16_t(state[lane]);
    const uint16_t* end = buffer.data() + room * (lane + 1);
    lengths[lane] = int32_t(end - p);
    stream.insert(stream.end(), p, const_cast<uint16_t*>(end));
  }
  stream.resize((stream.size() + 7) / 8 * 8);
}

template <class F>
uint32_t coded_value(const uint8_t* p) {
  uint32_t w = 0;
  memcpy(&w, p, F::fmt.word_bytes());
  if (F::fmt.word_bits == 32) w >>= 16;
  return ((w ^ F::fmt.flip) >> F::fmt.coded_shift) & F::fmt.value_mask();
}

}  // namespace

void count_values(const DenseView& m, int64_t begin, int64_t end, int64_t* counts) {
  with_format(m.format, [&](auto f) {
    using F = decltype(f);
    constexpr int kBytes = F::fmt.word_bytes();
    const uint8_t* words = m.words + begin * m.cols * kBytes;
    const int64_t n = (end - begin) * m.cols;
    // Four histograms: neighbouring weights often hit the same count, and a count's
    // load-add-store chain would then be waited for.
    std::vector<uint64_t> four(4 * 256, 0);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
      for (int k = 0; k < 4; ++k) ++four[256 * k + coded_value<F>(words + (i + k) * kBytes)];
    for (; i < n; ++i) ++four[coded_value<F>(words + i * kBytes)];
    for (uint32_t v = 0; v <= F::fmt.value_mask(); ++v)
      counts[v] += int64_t(four[v] + four[256 + v] + four[512 + v] + four[768 + v]);
  });
}

void count_pairs(const DenseView& m, int64_t begin, int64_t end, int64_t* counts) {
  with_format(m.format, [&](auto f) {
    LaneTile tile;
    for (int64_t row = begin; row < end; ++row)
      for (int64_t col = 0; col < m.column_tiles().count(); ++col) {
        load_tile<decltype(f)>(m, row, col, tile);
        for (uint16_t r : tile.residuals) ++counts[r];
      }
  });
}

void encode_tile_row(const DenseView& m, const EncoderTables& tables, int64_t tile_row,
                     std::vector<uint16_t>& stream, uint8_t* raw, int32_t* lengths) {
  with_format(m.format, [&](auto f) {
    using F = decltype(f);
    LaneTile tile;
    std::vector<uint16_t> buffer;
    for (int64_t col = 0; col < m.column_tiles().count(); ++col) {
      load_tile<F>(m, tile_row, col, tile);
      pack_raw<F>(tile, raw);
      raw += raw_tile_bytes(F::fmt, tile.groups);
      encode_lanes(tile, tables, buffer, stream, lengths + col * kLanes);
    }
  });
}

}  // namespace codecllm
