// The coding fixed: tiles of constant size, no table, no stream. A unit of four groups is three
// quads of containers per lane:
//
//   load      three quads of a chunk of lanes, transposed: 12 containers
//   split     the halves of four pairs out of three containers, four times
//   words     the window base into every code but 0; to the sink
//
// The list comes last: `second_pass` overwrites what it names.
#pragma once
#include "tile_fixed.h"

namespace codecllm {
namespace {

// Asks for the next tile, a unit while one of this tile is decoded.
class FixedPrefetch {
 public:
  FixedPrefetch() = default;
  explicit FixedPrefetch(const FixedTile& next)
      : at_(next.plane), end_(next.plane + next.plane_bytes()) {}

  CLLM_INLINE void step() {
    if (at_ >= end_) return;
    for (int i = 0; i < kFixedUnitBytes; i += 64) __builtin_prefetch(at_ + i);
    at_ += kFixedUnitBytes;
  }

 private:
  const uint8_t *at_ = nullptr, *end_ = nullptr;
};

// Containers of the last one to three groups of a tile as those of a whole unit, zeros behind
// them.
inline void widen_unit(const uint8_t* from, int groups, uint8_t* to) {
  const int count = kFixedContainers * groups;
  memset(to, 0, kFixedUnitBytes);
  for (int n = 0; n < count; ++n)
    for (int lane = 0; lane < kLanes; ++lane)
      memcpy(to + 4 * container_at(n, lane, kFixedUnitContainers),
             from + 4 * container_at(n, lane, count), 4);
}

// Chunk c of the lanes of a unit: use(group, pairs), halves as they are, for its first `groups`.
template <class Use>
CLLM_INLINE void for_pairs(const uint8_t* unit, int c, int groups, Use&& use) {
  V::reg quads[kFixedContainers][4];
#pragma GCC unroll 3
  for (int q = 0; q < kFixedContainers; ++q)
    V::load_quads(unit + 16 * (kLanes * q + V::W * c), quads[q]);
#pragma GCC unroll 4
  for (int g = 0; g < kFixedUnit; ++g) {
    if (g >= groups) break;
    V::reg containers[kFixedContainers], pairs[kPairsPerGroup];
#pragma GCC unroll 3
    for (int i = 0; i < kFixedContainers; ++i) {
      const int n = kFixedContainers * g + i;
      containers[i] = quads[n / 4][n % 4];
    }
    split_group<V>(containers, pairs);
    use(g, pairs);
  }
}

// What the decoding of a tile needs and learns.
struct FixedWords {
  V::reg base, lies;

  CLLM_INLINE explicit FixedWords(const FixedTile& tile)
      : base(V::set1(tile.window_base * 0x10001u << kFixedCodeShift)), lies(V::set1(0)) {}
  CLLM_INLINE bool honest() const { return V::all_eq(lies, V::set1(0)); }

  // The first `groups` groups of a chunk of lanes of the unit at `from`; the first is group `group`
  // of tile t.
  template <class Sink>
  CLLM_INLINE void chunk(const uint8_t* from, int c, int groups, int t, int group, Sink& sink) {
    for_pairs(from, c, groups,
              [&](int g, const V::reg(&pairs)[kPairsPerGroup]) __attribute__((always_inline)) {
#pragma GCC unroll 4
                for (int j = 0; j < kPairsPerGroup; ++j) {
                  const V::reg words = halves_to_words<V>(pairs[j], base, lies);
                  sink.put(t, c, group + g, j, words, words);
                }
              });
  }
};

// Calls use(quads, groups, group) for every unit of a tile: its quads, how many groups it has, the
// first one's number.
template <class Use>
CLLM_INLINE void for_units(const FixedTile& tile, FixedPrefetch next, Use&& use) {
  uint8_t last[kFixedUnitBytes];
  const uint8_t* from = tile.plane;
  for (int group = 0; group < tile.groups; group += kFixedUnit, from += kFixedUnitBytes) {
    const int left = tile.groups - group;
    next.step();
    if (left < kFixedUnit) widen_unit(from, left, last);
    use(left < kFixedUnit ? last : from, left < kFixedUnit ? left : kFixedUnit, group);
  }
}

// Decodes tile t of those decoded at once.
template <class Sink>
CLLM_INLINE bool decode_fixed_tile(const FixedTile& tile, FixedPrefetch next, int t, Sink& sink) {
  FixedWords words(tile);
  for_units(tile, next, [&](const uint8_t* from, int groups, int group) {
    for (int c = 0; c < kChunks; ++c) words.chunk(from, c, groups, t, group, sink);
  });
  return words.honest();
}

// ---- rows ---------------------------------------------------------------------------------------

constexpr int kFixedUnitCols = kFixedUnit * kGroupCols;
constexpr int kFixedUnitRowBytes = kFixedUnitCols * Bf16::fmt.word_bytes();

// Keeps the pairs of a chunk of a unit in registers.
struct UnitChunk {
  V::reg pairs[kFixedUnit][kPairsPerGroup];

  CLLM_INLINE void put(int, int, int g, int j, V::reg pair, V::reg) {
    pairs[g % kFixedUnit][j] = pair;
  }
  // To 64 columns of the tile's rows: every pair register has 8 columns of W / 4 rows.
  CLLM_INLINE void store(int c, uint8_t* out, int64_t row_bytes, bool stream) const {
#pragma GCC unroll 2
    for (int row_half = 0; row_half < 2; ++row_half)
#pragma GCC unroll 2
      for (int g = 0; g < kFixedUnit; g += 2) {
        const V::reg parts[4] = {pairs[g][row_half], pairs[g][2 + row_half], pairs[g + 1][row_half],
                                 pairs[g + 1][2 + row_half]};
        V::store_rows(out + (8 * row_half + V::W / 4 * c) * row_bytes + 32 * g, row_bytes, parts,
                      stream);
      }
  }
};

// The words of a tile, `out` its first one. Not through scratch: registers hold whole cache lines
// of rows, which are best written past the caches where the matrix is larger than these (4096 x
// 4096, one core: 7.5 ms through scratch, 4.5 from registers, 2.6 past the caches; a copy of the
// dense matrix: 3.8).
inline bool write_fixed_tile(const FixedTile& tile, FixedPrefetch next, uint8_t* out,
                             int64_t row_bytes, bool stream) {
  FixedWords words(tile);
  for_units(tile, next, [&](const uint8_t* from, int, int group) {
    const int cols = tile.cols - kGroupCols * group;
    uint8_t* to = out + kGroupCols * Bf16::fmt.word_bytes() * group;
    uint8_t border[kTileRows][kFixedUnitRowBytes];
    const bool whole = cols >= kFixedUnitCols && tile.rows == kTileRows;
    for (int c = 0; c < kChunks; ++c) {
      UnitChunk chunk;
      words.chunk(from, c, kFixedUnit, 0, 0, chunk);
      chunk.store(c, whole ? to : border[0], whole ? row_bytes : kFixedUnitRowBytes,
                  whole && stream);
    }
    if (whole) return;
    const int bytes = cols < kFixedUnitCols ? 2 * cols : kFixedUnitRowBytes;
    for (int row = 0; row < tile.rows; ++row)
      memcpy(to + row * row_bytes, border[row], size_t(bytes));
  });
  for (int64_t i = 0; i < tile.list.count; ++i) {
    const FixedEntry e = tile.list[i];
    const uint16_t word = e.word();
    memcpy(out + e.row() * row_bytes + 2 * e.col(), &word, sizeof word);
  }
  return words.honest();
}

// ---- the source ---------------------------------------------------------------------------------

class FixedSource {
 public:
  using Format = Bf16;
  using Tile = FixedTile;
  using Prefetch = FixedPrefetch;

  FixedSource(const CodedView& view, uint8_t*) : view_(view) {}

  bool locate(int64_t tile_row, int64_t col_tile, Tile& tile) {
    return locate_fixed(view_, tile_row, col_tile, segment_, tile);
  }
  Prefetch prefetch(const Tile& next) const { return Prefetch(next); }
  template <int Count, class Sink>
  CLLM_INLINE bool decode(const Tile* tiles, const Prefetch* prefetch, Sink& sink) {
    bool honest = true;
    for (int t = 0; t < Count; ++t) honest &= decode_fixed_tile(tiles[t], prefetch[t], t, sink);
    return honest;
  }

  bool write_rows(const Tile& tile, Prefetch next, uint8_t* out, int64_t row_bytes,
                  bool stream) const {
    return write_fixed_tile(tile, next, out, row_bytes, stream);
  }

  bool has_second_pass() const { return view_.listed() > 0; }
  void second_pass(const Tile& tile, uint32_t* pairs) const {
    for (int64_t i = 0; i < tile.list.count; ++i) {
      const FixedEntry e = tile.list[i];
      const uint16_t word = e.word();
      uint8_t* half = (uint8_t*)(pairs + pair_at(e.row(), e.col())) + 2 * (e.col() & 1);
      memcpy(half, &word, sizeof word);
    }
  }

 private:
  const CodedView& view_;
  int64_t segment_ = 0;
};

}  // namespace
}  // namespace codecllm
