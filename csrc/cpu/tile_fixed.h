// The coding fixed on the CPU: its bits, where a tile's plane and list are, and single rows.
// source_fixed.h decodes whole tiles with SIMD registers, to_fixed_kernel.h codes them.
//
// A half keeps sign (bit 15), code (7..10) and mantissa (0..6) in place; the bits 11..14 of three
// pair registers of a group hold the fourth one (docs/format.md).
#pragma once
#include <string.h>

#include "source.h"

namespace codecllm {
namespace {

constexpr uint32_t kFixedMantissa = 0x007f007f;  // of both halves
constexpr int kFixedCodeShift = 7;
constexpr int kFixedUnitContainers = kFixedUnit * kFixedContainers;
constexpr int kFixedGroupBytes = int(fixed_tile_bytes(1)),
              kFixedUnitBytes = kFixedUnit * kFixedGroupBytes;

// The halves of a group's four pairs out of its three containers, and back. V: registers as in
// simd.h.
template <class V>
CLLM_INLINE void split_group(const typename V::reg* containers, typename V::reg* pairs) {
  using reg = typename V::reg;
  for (int j = 0; j < 3; ++j) pairs[j] = V::and_(containers[j], V::set1(kFixedPlace));
  const reg high = V::and_(V::shr(containers[0], 4), V::set1(kFixedSpread[0]));
  const reg middle = V::and_(V::shr(containers[1], 8), V::set1(kFixedSpread[1]));
  const reg ends = V::and_(V::rotr(containers[2], 12), V::set1(kFixedSpread[2]));
  pairs[3] = V::or_(V::or_(high, middle), ends);
}
template <class V>
CLLM_INLINE void join_group(const typename V::reg* pairs, typename V::reg* containers) {
  const typename V::reg fourth = pairs[3];
  containers[0] = V::or_(pairs[0], V::shl(V::and_(fourth, V::set1(kFixedSpread[0])), 4));
  containers[1] = V::or_(pairs[1], V::shl(V::and_(fourth, V::set1(kFixedSpread[1])), 8));
  containers[2] = V::or_(pairs[2], V::rotr(V::and_(fourth, V::set1(kFixedSpread[2])), 32 - 12));
}

// Real words from halves: the base goes to every code but 0. `lies` collects mantissas of code 0.
template <class V>
CLLM_INLINE typename V::reg halves_to_words(typename V::reg halves, typename V::reg base,
                                            typename V::reg& lies) {
  const auto zero = V::none16(halves, kFixedCode);
  lies = V::or_(lies, V::and_(V::keep16(zero, halves), V::set1(kFixedMantissa)));
  return V::add16(halves, V::drop16(zero, base));
}

// ---- the list -----------------------------------------------------------------------------------

struct FixedEntry {
  uint32_t bits;

  CLLM_INLINE int row() const { return entry_row(bits); }
  CLLM_INLINE int col() const { return entry_col(bits); }
  CLLM_INLINE uint32_t position() const { return bits >> 16; }
  CLLM_INLINE uint16_t word() const { return uint16_t(bits); }
};

// Those of a tile, at any alignment.
struct FixedList {
  const uint8_t* first;
  int64_t count;

  CLLM_INLINE FixedEntry operator[](int64_t i) const {
    FixedEntry e;
    memcpy(&e.bits, first + kListedBytes * i, 4);
    return e;
  }
};

struct FixedTile : TilePlace {
  const uint8_t* plane;
  FixedList list;
  uint32_t window_base;

  int64_t plane_bytes() const { return fixed_tile_bytes(groups); }
};

// Fills `tile`, or says that the index or the list is corrupt: ends that do not ascend or lie
// beyond the list, entries out of order or outside the matrix.
inline bool locate_fixed(const CodedView& m, int64_t tile_row, int64_t col_tile, int64_t& segment,
                         FixedTile& tile) {
  const uint32_t* header = place_tile(m, tile_row, col_tile, segment, tile);
  tile.window_base = header[kWindowBase];
  tile.plane = m.stream + m.plane_at(tile_row, col_tile);
  const uint32_t begin = tile.number ? m.index[tile.number - 1] : 0, end = m.index[tile.number];
  if (begin > end || int64_t(end) > m.listed()) return false;
  tile.list = {m.raw + kListedBytes * int64_t(begin), int64_t(end - begin)};
  int64_t next = 0;  // least position that the next entry may have
  bool inside = true;
  for (int64_t i = 0; i < tile.list.count; ++i) {
    const FixedEntry e = tile.list[i];
    inside &= (e.row() < tile.rows) & (e.col() < tile.cols) & (int64_t(e.position()) >= next);
    next = int64_t(e.position()) + 1;
  }
  return inside;
}

// ---- one row ------------------------------------------------------------------------------------

// The four lanes of a row, in a register that every machine has.
struct FourLanes {
  typedef uint32_t reg __attribute__((vector_size(16)));
  typedef uint16_t u16x8 __attribute__((vector_size(16)));
  using Halves = u16x8;  // all bits of a half, or none

  static CLLM_INLINE reg set1(uint32_t v) { return reg{} + v; }
  static CLLM_INLINE reg and_(reg a, reg b) { return a & b; }
  static CLLM_INLINE reg or_(reg a, reg b) { return a | b; }
  static CLLM_INLINE reg shr(reg a, int n) { return a >> n; }
  static CLLM_INLINE reg rotr(reg a, int n) { return a >> n | a << (32 - n); }
  static CLLM_INLINE Halves none16(reg a, uint32_t bits) {
    return (Halves)((u16x8)(a & bits) == u16x8{});
  }
  static CLLM_INLINE reg keep16(Halves k, reg a) { return (reg)k & a; }
  static CLLM_INLINE reg drop16(Halves k, reg a) { return ~(reg)k & a; }
  static CLLM_INLINE reg add16(reg a, reg b) { return (reg)((u16x8)a + (u16x8)b); }
};

// Container n of the four lanes from `lane` on.
CLLM_INLINE FourLanes::reg load_containers(const FixedTile& tile, int n, int lane) {
  const int count = kFixedContainers * tile.groups;
  uint32_t four[4];
  for (int i = 0; i < 4; ++i)
    memcpy(&four[i], tile.plane + 4 * int64_t(container_at(n, lane + i, count)), 4);
  FourLanes::reg out;
  memcpy(&out, four, sizeof out);
  return out;
}

// The half of the plane in the place of an entry.
inline uint32_t half_at(const FixedTile& tile, FixedEntry entry) {
  const int group = entry.col() / kGroupCols, pair = pair_at(entry.row(), entry.col());
  const int j = pair / kLanes % kPairsPerGroup, lane = pair % kLanes;
  FourLanes::reg containers[kFixedContainers], halves[kPairsPerGroup];
  for (int i = 0; i < kFixedContainers; ++i)
    containers[i] = load_containers(tile, kFixedContainers * group + i, lane / 4 * 4);
  split_group<FourLanes>(containers, halves);
  return halves[j][lane % 4] >> 16 * (entry.col() & 1) & 0xffff;
}

// A row of one tile. Fills `place`.
inline Status decode_fixed_row(const CodedView& view, const RowPlace& at, int64_t col_tile,
                               TilePlace& place, RowPairs& out) {
  using reg = FourLanes::reg;
  FixedTile tile;
  int64_t segment = at.segment;
  const bool found = locate_fixed(view, at.tile_row, col_tile, segment, tile);
  place = tile;
  if (!found) return {Corruption::index, tile.number};
  const int lane = at.row % 8 * 4, row_half = at.row / 8;
  const reg base = FourLanes::set1(tile.window_base * 0x10001u << kFixedCodeShift);
  reg lies = {};
  for (int group = 0; group < tile.groups; ++group) {
    reg containers[kFixedContainers], halves[kPairsPerGroup];
    for (int i = 0; i < kFixedContainers; ++i)
      containers[i] = load_containers(tile, kFixedContainers * group + i, lane);
    split_group<FourLanes>(containers, halves);
    for (int half_group = 0; half_group < 2; ++half_group) {
      const reg words = halves_to_words<FourLanes>(halves[2 * half_group + row_half], base, lies);
      memcpy(out.pairs + 4 * (2 * group + half_group), &words, sizeof words);
    }
  }
  if (lies[0] | lies[1] | lies[2] | lies[3]) return {Corruption::stream, tile.number};
  for (int64_t i = 0; i < tile.list.count; ++i) {
    const FixedEntry e = tile.list[i];
    const uint16_t word = e.word();
    if (e.row() == at.row) memcpy((uint8_t*)out.pairs + 2 * e.col(), &word, 2);
  }
  return {};
}

}  // namespace
}  // namespace codecllm
