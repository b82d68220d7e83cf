// The coding rans on the CPU, one lane after the other: where a tile's words are, and single rows.
// source_rans.h decodes whole tiles with SIMD registers.
#pragma once
#include <string.h>

#include "../core/rans.h"
#include "source.h"

namespace codecllm {
namespace {

struct RansTile : TilePlace {
  const uint8_t* words;    // first word
  uint32_t limit;          // largest position (in words) from which four may be fetched
  uint32_t start[kLanes];  // position of each lane's first word
  uint32_t end[kLanes];    // one past its last
  const uint8_t* raw;
  const uint32_t* slots;  // [2^scale_bits]
  uint32_t window_base, seed;
};

// The raw planes of two tiles, unpacked.
inline int64_t rans_scratch_bytes(const CodedView& m) { return kTilesAtOnce * m.plane_tile_bytes; }

// Fills `tile`, or says that the index is corrupt. `segment`: of the tile before, then of this one.
inline bool locate_rans(const CodedView& m, int64_t tile_row, int64_t col_tile, int64_t& segment,
                        RansTile& tile) {
  const uint32_t* header = place_tile(m, tile_row, col_tile, segment, tile);
  tile.window_base = header[kWindowBase];
  tile.seed = header[kSeed];
  tile.slots = header + kTableHeader;
  tile.raw = m.raw + tile_row * m.plane_row_bytes + col_tile * m.plane_tile_bytes;

  // The lanes' lengths: the shortest, and len_bits for each of what it has more.
  const uint32_t* record = m.index + tile.number * (2 + m.len_bits);
  if (record[1] >> 16 != uint32_t(segment)) return false;
  const uint32_t shortest = record[1] & 0xffff, mask = (1u << m.len_bits) - 1;
  const uint32_t* next = record + 2;
  uint64_t bits = 0;
  int have = 0;
  uint32_t at = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (have < m.len_bits) {
      bits |= uint64_t(*next++) << have;
      have += 32;
    }
    tile.start[lane] = at;
    at += shortest + (uint32_t(bits) & mask);
    tile.end[lane] = at;
    bits >>= m.len_bits;
    have -= m.len_bits;
  }
  const int64_t begin = int64_t(record[0]) * kStreamAlign;
  if (begin + 2 * (int64_t(at) + kStreamPadWords) > m.stream_bytes) return false;
  tile.words = m.stream + begin;
  tile.limit = at + kStreamPadWords - 4;
  return true;
}

CLLM_INLINE uint32_t load_word(const RansTile& tile, uint32_t at) {
  uint16_t w;
  memcpy(&w, tile.words + 2 * size_t(at < tile.limit ? at : tile.limit), 2);
  return w;
}

// Predictor `left`: puts the coded value in place of the residual in one half of a pair (after
// flip: so flip is taken off and on). `value`: that of the column before, then of this one.
template <class F>
CLLM_INLINE uint32_t undo_left(uint32_t pair, int half, uint32_t& value) {
  constexpr WeightFormat fmt = F::fmt;
  constexpr uint32_t mask = fmt.value_mask(), center = 1u << (fmt.coded_bits - 1);
  constexpr uint32_t flip = fmt.flip >> fmt.coded_shift & mask;
  const int shift = fmt.coded_shift + 16 * half;
  const uint32_t residual = (pair >> shift & mask) ^ flip;
  value = (value + residual - center) & mask;
  return (pair & ~(mask << shift)) | (value ^ flip) << shift;
}

// ---- one row ------------------------------------------------------------------------------------

// Raw bits of pair n of a lane (n = 4 * group + j) into its coded fields; returns the low halves.
template <class F>
inline uint32_t merge_raw(const RansTile& tile, int lane, int n, uint32_t& pair) {
  constexpr WeightFormat fmt = F::fmt;
  uint32_t low = 0;
  const uint8_t* plane = tile.raw;
  for (int p = 0; p < fmt.n_planes; ++p) {
    const int bits = fmt.planes[p].bits, per_container = 16 / bits;
    const int count = containers(bits, tile.groups), turn = n % per_container * bits;
    uint32_t raw;
    memcpy(&raw, plane + 4 * int64_t(container_at(n / per_container, lane, count)), 4);
    plane += 4 * int64_t(count) * kLanes;
    if (fmt.planes[p].low_half) {
      low = raw;
    } else {
      pair |= (raw >> turn | raw << (-turn & 31)) & fmt.planes[p].mask;
    }
  }
  return low;
}

// The pairs of one lane that lie in one half of the tile's rows: two of a group, four apart in
// `out`, where those of the row's other lanes lie between. False: the lane does not end as the
// encoder began.
template <class F>
inline bool decode_lane(const CodedView& view, const RansTile& tile, int lane, int row_half,
                        uint32_t* pairs, uint32_t* low) {
  constexpr WeightFormat fmt = F::fmt;
  const uint32_t slot_mask = (1u << view.scale_bits) - 1;
  const uint32_t base = tile.window_base * 0x10001u << fmt.coded_shift;
  uint32_t at = tile.start[lane];
  uint32_t x = load_word(tile, at) | load_word(tile, at + 1) << 16;
  at += 2;
  for (int group = 0; group < tile.groups; ++group) {
    uint32_t entry[kPairsPerGroup], fields[kPairsPerGroup];
    for (int j = 0; j < kPairsPerGroup; ++j) {
      entry[j] = tile.slots[x & slot_mask];
      x = rans_advance<Scalar>(x, entry[j], view.scale_bits);
      if (x < kRansL) x = x << 16 | load_word(tile, at++);
      fields[j] = coded_fields<Scalar, fmt.coded_shift>(entry[j]) + base;
    }
    for (int j = 0; j < kPairsPerGroup; ++j)
      if (entry[j] >= kEscapeFrom)
        fields[j] = literal_fields(load_word(tile, at++), fmt.value_mask(), fmt.coded_shift);
    for (int half_group = 0; half_group < 2; ++half_group) {
      const int j = 2 * half_group + row_half, to = 4 * (2 * group + half_group);
      uint32_t pair = fields[j];
      low[to] = merge_raw<F>(tile, lane, kPairsPerGroup * group + j, pair);
      pairs[to] = pair ^ fmt.flip;
    }
  }
  return x == kRansL && at == tile.end[lane];
}

// A row of one tile. Fills `place`.
template <class F>
inline Status decode_rans_row(const CodedView& view, const RowPlace& at, int64_t col_tile,
                              TilePlace& place, RowPairs& out) {
  RansTile tile;
  int64_t segment = at.segment;
  const bool found = locate_rans(view, at.tile_row, col_tile, segment, tile);
  place = tile;
  if (!found) return {Corruption::index, tile.number};
  for (int k = 0; k < 4; ++k)
    if (!decode_lane<F>(view, tile, at.row % 8 * 4 + k, at.row / 8, out.pairs + k, out.low + k))
      return {Corruption::stream, tile.number};
  if (view.predictor) {
    uint32_t value = tile.seed;
    for (int col = 0; col < tile.cols; ++col)
      out.pairs[col / 2] = undo_left<F>(out.pairs[col / 2], col & 1, value);
  }
  return {};
}

}  // namespace
}  // namespace codecllm
