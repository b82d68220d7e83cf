// to_fixed: a matrix of another coding, or a stored one, as fixed, in one pass.
//
//   source tiles   |  1  |  2  |  3  |     pairs of a source tile in scratch, lane order; behind
//   groups         |.....|.....|.....|     those up to three of the tile before that are left over
//   units of four  |....|....|....|...|
//   target tiles   |        1   |   2 |
//
//   for_blocks: decode_to_pairs -> clear_padding -> PairPacker::take -> RowPacker::pack, pack_unit
//   stored:     load_unit_rows  -------------------------------------> the same
//
// Tile rows of source and target are the same; where columns are cut may differ.
#pragma once
#include "blocks.h"
#include "to_fixed.h"

namespace codecllm {
namespace {

constexpr int kGroupPairs = kPairsPerGroup * kLanes;
constexpr int kCarried = kFixedUnit - 1;  // most groups that wait for the next source tile
constexpr uint32_t kMagnitude = 0x7fff7fff;

// ---- a unit -------------------------------------------------------------------------------------

// Words to halves: those in the window, and zeros. `known`: which halves these are.
struct FixedCoder {
  V::reg first, bias;  // the least magnitude of the window; what code and exponent differ by

  explicit FixedCoder(uint32_t base)
      : first(V::set1((base + 1) * 0x10001u << kFixedCodeShift)),
        bias(V::set1(base * 0x10001u << kFixedCodeShift)) {}

  CLLM_INLINE V::reg operator()(V::reg words, V::Halves& known) const {
    const V::reg above = V::sub16(V::and_(words, V::set1(kMagnitude)), first);
    const V::Halves inside = V::below16(above, kFixedCodes << kFixedCodeShift);
    const V::Halves zero = V::none16(words, kMagnitude);
    known = V::either16(inside, zero);
    return V::or_(V::keep16(inside, V::sub16(words, bias)), V::keep16(zero, words));
  }
};

// Lists the halves of four pairs that are not known.
inline void list_unknown(const V::reg (&words)[kPairsPerGroup],
                         const V::Halves (&known)[kPairsPerGroup], int first_lane, int first_col,
                         FixedEntries& entries) {
  for (int j = 0; j < kPairsPerGroup; ++j) {
    uint16_t halves[2 * V::W];
    uint32_t pairs[V::W];
    V::store(pairs, words[j]);
    memcpy(halves, pairs, sizeof halves);
    uint32_t unknown = ~V::bits16(known[j]) & V::kAllHalves;
    for (; unknown; unknown &= unknown - 1) {
      const int half = __builtin_ctz(unknown), lane = first_lane + half / 2;
      const int col = first_col + pair_col(lane, j) + half % 2;
      entries.add(list_entry(pair_row(lane, j), col, halves[half]));
    }
  }
}

// Codes a unit of `groups` groups, of which the first is group `first` of the target tile, and
// lists what has no code. load(c, words): the pairs of a chunk of lanes, zeros behind the last
// group.
template <class Load>
CLLM_INLINE void pack_unit(Load&& load, int first, const FixedCoder& coder, uint8_t* out,
                           bool stream, FixedEntries& entries) {
  for (int c = 0; c < kChunks; ++c) {
    V::reg words[kFixedUnit][kPairsPerGroup], quads[kFixedContainers][4];
    load(c, words);
#pragma GCC unroll 4
    for (int g = 0; g < kFixedUnit; ++g) {
      V::reg halves[kPairsPerGroup], containers[kFixedContainers];
      V::Halves known[kPairsPerGroup];
#pragma GCC unroll 4
      for (int j = 0; j < kPairsPerGroup; ++j) halves[j] = coder(words[g][j], known[j]);
      const V::Halves all = V::both16(V::both16(known[0], known[1]), V::both16(known[2], known[3]));
      if (__builtin_expect(V::bits16(all) != V::kAllHalves, 0))
        list_unknown(words[g], known, c * V::W, kGroupCols * (first + g), entries);
      join_group<V>(halves, containers);
#pragma GCC unroll 3
      for (int i = 0; i < kFixedContainers; ++i) {
        const int n = kFixedContainers * g + i;
        quads[n / 4][n % 4] = containers[i];
      }
    }
#pragma GCC unroll 3
    for (int q = 0; q < kFixedContainers; ++q)
      V::store_quads(out + 16 * (kLanes * q + V::W * c), quads[q], stream);
  }
}

// Containers of the last one to three groups of a tile, out of those of a whole unit.
inline void narrow_unit(const uint8_t* from, int groups, uint8_t* to) {
  const int count = kFixedContainers * groups;
  for (int n = 0; n < count; ++n)
    for (int lane = 0; lane < kLanes; ++lane)
      memcpy(to + 4 * container_at(n, lane, count),
             from + 4 * container_at(n, lane, kFixedUnitContainers), 4);
}

// ---- a row of tiles -----------------------------------------------------------------------------

// Packs a row of tiles, unit by unit.
class RowPacker {
 public:
  RowPacker(const CodedView& source, const FixedTarget& target)
      : target_(target), across_{source.cols, target.tile_cols}, coder_(0) {}

  void begin(int64_t tile_row, uint32_t base) {
    plane_ = target_.plane + tile_row * across_.fixed_row_bytes();
    counts_ = target_.counts + tile_row * across_.count();
    entries_ = target_.entries + tile_row;
    coder_ = FixedCoder(base);
    tile_ = first_ = 0;
  }
  // First column and groups of the next unit; none behind the last one of the row.
  int64_t first_col() const { return across_.first_col(tile_) + kGroupCols * first_; }
  int groups() const {
    if (tile_ == across_.count()) return 0;
    const int left = across_.groups(tile_) - first_;
    return left < kFixedUnit ? left : kFixedUnit;
  }
  // `load` as in pack_unit.
  template <class Load>
  CLLM_INLINE void pack(Load&& load) {
    const int n = groups();
    const bool whole = n == kFixedUnit;
    uint8_t last[kFixedUnitBytes];
    pack_unit(load, first_, coder_, whole ? plane_ : last, whole && target_.stream, *entries_);
    if (!whole) narrow_unit(last, n, plane_);
    plane_ += n * kFixedGroupBytes;
    first_ += n;
    if (first_ < across_.groups(tile_)) return;
    counts_[tile_++] = entries_->close_tile();
    first_ = 0;
  }

 private:
  const FixedTarget& target_;
  ColumnTiles across_;
  FixedCoder coder_;
  uint8_t* plane_ = nullptr;  // of the next unit
  int32_t* counts_ = nullptr;
  FixedEntries* entries_ = nullptr;
  int64_t tile_ = 0;  // of the row
  int first_ = 0;     // group of the tile
};

// Takes the pairs of source tiles, which are put at `pairs`; before them is room for kCarried
// groups that wait for the next tile.
class PairPacker {
 public:
  PairPacker(const CodedView& source, const FixedTarget& target, uint32_t* pairs)
      : row_(source, target), pairs_(pairs) {}

  void begin(int64_t tile_row, uint32_t base) {
    row_.begin(tile_row, base);
    carried_ = 0;
  }
  void take(int groups) {
    const uint32_t* from = pairs_ - carried_ * kGroupPairs;
    int left = carried_ + groups;
    for (int n = row_.groups(); n > 0 && n <= left; n = row_.groups()) {
      row_.pack(
          [&](int c, V::reg(&words)[kFixedUnit][kPairsPerGroup]) __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int g = 0; g < kFixedUnit; ++g)
#pragma GCC unroll 4
              for (int j = 0; j < kPairsPerGroup; ++j)
                words[g][j] = g < n ? V::load(from + (kPairsPerGroup * g + j) * kLanes + c * V::W)
                                    : V::set1(0);
          });
      from += n * kGroupPairs;
      left -= n;
    }
    carried_ = left;
    memmove(pairs_ - left * kGroupPairs, from, size_t(left) * kGroupPairs * 4);
  }

 private:
  RowPacker row_;
  uint32_t* pairs_;
  int carried_ = 0;
};

// Zeros in place of what lies outside the matrix.
inline void clear_padding(const TilePlace& tile, uint32_t* pairs) {
  const int padded = kGroupCols * tile.groups;
  if (tile.rows == kTileRows && tile.cols == padded) return;
  uint8_t* bytes = (uint8_t*)pairs;
  for (int row = 0; row < kTileRows; ++row)
    for (int col = row < tile.rows ? tile.cols : 0; col < padded; ++col)
      memset(bytes + 4 * pair_at(row, col) + 2 * (col & 1), 0, 2);
}

// ---- stored matrices ----------------------------------------------------------------------------

// The chunk of a unit from rows of words.
CLLM_INLINE void load_unit_rows(const uint8_t* words, int64_t row_bytes, int c,
                                V::reg (&pairs)[kFixedUnit][kPairsPerGroup]) {
#pragma GCC unroll 2
  for (int row_half = 0; row_half < 2; ++row_half)
#pragma GCC unroll 2
    for (int g = 0; g < kFixedUnit; g += 2) {
      V::reg parts[4];
      V::load_rows(words + (8 * row_half + V::W / 4 * c) * row_bytes + 32 * g, row_bytes, parts);
      pairs[g][row_half] = parts[0];
      pairs[g][2 + row_half] = parts[1];
      pairs[g + 1][row_half] = parts[2];
      pairs[g + 1][2 + row_half] = parts[3];
    }
}

inline void stored_to_fixed(const CodedView& view, int64_t begin, int64_t end,
                            const FixedTarget& target) {
  const int64_t row_bytes = view.cols * Bf16::fmt.word_bytes();
  RowPacker packer(view, target);
  for (int64_t tile_row = begin; tile_row < end; ++tile_row) {
    packer.begin(tile_row, uint32_t(target.bases[0]));
    const int64_t row = tile_row * kTileRows, rows = view.rows - row;
    while (int n = packer.groups()) {
      const int64_t col = packer.first_col(), cols = view.cols - col;
      const uint8_t* from = view.stream + row * row_bytes + 2 * col;
      int64_t stride = row_bytes;
      uint8_t border[kTileRows][kFixedUnitRowBytes];
      if (n < kFixedUnit || rows < kTileRows || cols < kFixedUnitCols) {
        const int64_t most = n * kGroupCols;
        memset(border, 0, sizeof border);
        for (int r = 0; r < kTileRows && r < rows; ++r)
          memcpy(border[r], from + r * row_bytes, size_t(2 * (cols < most ? cols : most)));
        from = border[0];
        stride = kFixedUnitRowBytes;
      }
      packer.pack([&](int c, V::reg(&pairs)[kFixedUnit][kPairsPerGroup])
                      __attribute__((always_inline)) { load_unit_rows(from, stride, c, pairs); });
    }
  }
  if (target.stream) V::fence();
}

// ---- the kernels --------------------------------------------------------------------------------

// Pairs of a tile, with room for carried groups before them.
inline int64_t carried_pair_bytes(const CodedView& view) {
  return int64_t(kCarried + view.groups(0)) * kGroupPairs * 4;
}

inline int64_t to_fixed_scratch_bytes(const CodedView& view) {
  if (view.coding == Coding::stored) return 0;
  return kTilesAtOnce * carried_pair_bytes(view) + source_scratch_bytes(view);
}

template <Source S>
inline Status coded_to_fixed(S& source, const CodedView& view, int64_t begin, int64_t end,
                             const FixedTarget& target, uint32_t* const (&pairs)[kTilesAtOnce]) {
  PairPacker packers[kTilesAtOnce] = {{view, target, pairs[0]}, {view, target, pairs[1]}};
  int64_t segment = 0;
  const auto use = [&](const Block<S>& block, const typename S::Prefetch* prefetch) {
    if (!decode_to_pairs(source, block, prefetch, pairs, pairs)) return false;
    for (int t = 0; t < block.count; ++t) {
      const TilePlace& tile = block.tile[t];
      if (tile.first_col == 0) {
        const int64_t tile_row = tile.number / view.col_tiles;
        segment = segment_of(view, tile_row, segment);
        packers[t].begin(tile_row, uint32_t(target.bases[segment]));
      }
      clear_padding(tile, pairs[t]);
      packers[t].take(tile.groups);
    }
    return true;
  };
  const Status status = for_blocks(source, view, begin, end, use, [](const Block<S>&) {});
  if (target.stream) V::fence();
  return status;
}

inline Status to_fixed(const CodedView& view, int64_t begin, int64_t end, const FixedTarget& target,
                       uint8_t* at) {
  if (view.coding == Coding::stored) {
    stored_to_fixed(view, begin, end, target);
    return {};
  }
  uint32_t* pairs[kTilesAtOnce];
  for (uint32_t*& p : pairs) {
    p = (uint32_t*)at + kCarried * kGroupPairs;
    at += carried_pair_bytes(view);
  }
  return with_source(view, at, [&](auto& source) -> Status {
    using S = std::remove_reference_t<decltype(source)>;
    if constexpr (std::is_same_v<typename S::Format, Bf16>)
      return coded_to_fixed(source, view, begin, end, target, pairs);
    else
      return {Corruption::index, 0};  // the op takes bfloat16 only
  });
}

// Takes pairs and does nothing with them: what remains of decoding is its checks.
struct NoSink {
  CLLM_INLINE void put(int, int, int, int, V::reg, V::reg) {}
};

// Every lie that a matrix of coding fixed can hold, tile by tile: the first one found.
inline Status check_fixed(const CodedView& view, int64_t begin, int64_t end) {
  int64_t segment = 0;
  NoSink sink;
  for (int64_t tile_row = begin; tile_row < end; ++tile_row)
    for (int64_t col_tile = 0; col_tile < view.col_tiles; ++col_tile) {
      FixedTile tile;
      if (!locate_fixed(view, tile_row, col_tile, segment, tile))
        return {Corruption::index, tile.number};
      bool honest = decode_fixed_tile(tile, FixedPrefetch(), 0, sink);
      for (int64_t i = 0; i < tile.list.count; ++i) honest &= half_at(tile, tile.list[i]) == 0;
      if (!honest) return {Corruption::stream, tile.number};
    }
  return {};
}

}  // namespace
}  // namespace codecllm
