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

// Containers of the last one to three groups of a tile as those of a whole unit.
inline void widen_unit(const uint8_t* from, int groups, uint8_t* to) {
  const int count = kFixedContainers * groups;
  for (int n = 0; n < count; ++n)
    for (int lane = 0; lane < kLanes; ++lane)
      memcpy(to + 4 * container_at(n, lane, kFixedUnitContainers),
             from + 4 * container_at(n, lane, count), 4);
}

// What the decoding of a tile needs and learns.
struct FixedWords {
  V::reg base, lies;

  CLLM_INLINE explicit FixedWords(const FixedTile& tile)
      : base(V::set1(tile.window_base * 0x10001u << kFixedCodeShift)), lies(V::set1(0)) {}
  CLLM_INLINE bool honest() const { return V::all_eq(lies, V::set1(0)); }

  // The first `groups` groups of a unit at `from`, group `group` of tile t the first.
  template <class Sink>
  CLLM_INLINE void unit(const uint8_t* from, int groups, int t, int group, Sink& sink) {
    for (int c = 0; c < kChunks; ++c) {
      V::reg quads[kFixedContainers][4];
#pragma GCC unroll 3
      for (int q = 0; q < kFixedContainers; ++q)
        V::load_quads(from + 16 * (kLanes * q + V::W * c), quads[q]);
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
#pragma GCC unroll 4
        for (int j = 0; j < kPairsPerGroup; ++j) {
          const V::reg words = halves_to_words<V>(pairs[j], base, lies);
          sink.put(t, c, group + g, j, words, words);
        }
      }
    }
  }
};

// Decodes tile t of those decoded at once.
template <class Sink>
CLLM_INLINE bool decode_fixed_tile(const FixedTile& tile, FixedPrefetch next, int t, Sink& sink) {
  FixedWords words(tile);
  const uint8_t* from = tile.plane;
  int group = 0;
  for (; group + kFixedUnit <= tile.groups; group += kFixedUnit, from += kFixedUnitBytes) {
    next.step();
    words.unit(from, kFixedUnit, t, group, sink);
  }
  if (group < tile.groups) {
    uint8_t last[kFixedUnitBytes] = {};
    widen_unit(from, tile.groups - group, last);
    words.unit(last, tile.groups - group, t, group, sink);
  }
  return words.honest();
}

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
