// to_fixed: a matrix of another coding, or a stored one, as fixed, in one pass.
//
//   source tiles   |  1  |  2  |  3  |     pairs of a source tile in scratch, lane order; behind
//   groups         |.....|.....|.....|     those up to three of the tile before that are left over
//   units of four  |....|....|....|...|
//   target tiles   |        1   |   2 |
//
//   for_blocks: decode_to_scratch -> clear_padding -> RowPacker::take -> pack_unit
//   stored:     pairs_of_words    -----------------> RowPacker::take
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
      entries.add(uint32_t(pair_row(lane, j)) << 28 | uint32_t(col) << 16 | halves[half]);
    }
  }
}

// Codes `groups` groups of pairs, from group `first` of the target tile on, and lists what has no
// code.
inline void pack_unit(const uint32_t* pairs, int groups, int first, const FixedCoder& coder,
                      uint8_t* out, FixedEntries& entries) {
  for (int c = 0; c < kChunks; ++c) {
    V::reg quads[kFixedContainers][4];
#pragma GCC unroll 4
    for (int g = 0; g < kFixedUnit; ++g) {
      V::reg words[kPairsPerGroup], halves[kPairsPerGroup], containers[kFixedContainers];
      V::Halves known[kPairsPerGroup];
#pragma GCC unroll 4
      for (int j = 0; j < kPairsPerGroup; ++j) {
        // The last unit of a tile has zeros in place of the groups that it lacks.
        words[j] =
            g < groups ? V::load(pairs + (kPairsPerGroup * g + j) * kLanes + c * V::W) : V::set1(0);
        halves[j] = coder(words[j], known[j]);
      }
      const V::Halves all = V::both16(V::both16(known[0], known[1]), V::both16(known[2], known[3]));
      if (__builtin_expect(V::bits16(all) != V::kAllHalves, 0))
        list_unknown(words, known, c * V::W, kGroupCols * (first + g), entries);
      join_group<V>(halves, containers);
#pragma GCC unroll 3
      for (int i = 0; i < kFixedContainers; ++i) {
        const int n = kFixedContainers * g + i;
        quads[n / 4][n % 4] = containers[i];
      }
    }
#pragma GCC unroll 3
    for (int q = 0; q < kFixedContainers; ++q)
      V::store_quads(out + 16 * (kLanes * q + V::W * c), quads[q]);
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

// Takes the groups of a row of tiles, as many at a time as a source tile has.
class RowPacker {
 public:
  // `pairs`: where source tiles are put; room for kCarried groups before it.
  RowPacker(const CodedView& source, const FixedTarget& target, uint32_t* pairs)
      : target_(target), across_{source.cols, target.tile_cols}, pairs_(pairs), coder_(0) {}

  void begin(int64_t tile_row, uint32_t base) {
    const int64_t row_bytes = across_.fixed_row_bytes();
    plane_ = target_.plane + tile_row * row_bytes;
    counts_ = target_.counts + tile_row * across_.count();
    entries_ = target_.entries + tile_row;
    coder_ = FixedCoder(base);
    tile_ = carried_ = first_ = 0;
  }

  // The next `groups` groups, which are at `pairs`.
  void take(int groups) {
    const uint32_t* from = pairs_ - carried_ * kGroupPairs;
    int left = carried_ + groups;
    while (left > 0) {
      const int in_tile = across_.groups(tile_), most = in_tile - first_;
      const int n = most < kFixedUnit ? most : kFixedUnit;
      if (left < n) break;
      pack(from, n);
      from += n * kGroupPairs;
      left -= n;
      first_ += n;
      if (first_ < in_tile) continue;
      counts_[tile_++] = entries_->close_tile();
      first_ = 0;
    }
    carried_ = left;
    memmove(pairs_ - left * kGroupPairs, from, size_t(left) * kGroupPairs * 4);
  }

 private:
  void pack(const uint32_t* from, int groups) {
    uint8_t* to = plane_;
    plane_ += groups * kFixedGroupBytes;
    if (groups == kFixedUnit) return pack_unit(from, kFixedUnit, first_, coder_, to, *entries_);
    uint8_t last[kFixedUnitBytes];
    pack_unit(from, groups, first_, coder_, last, *entries_);
    narrow_unit(last, groups, to);
  }

  const FixedTarget& target_;
  ColumnTiles across_;
  uint32_t* pairs_;
  FixedCoder coder_;
  uint8_t* plane_ = nullptr;  // of the next unit
  int32_t* counts_ = nullptr;
  FixedEntries* entries_ = nullptr;
  int64_t tile_ = 0;             // of the row
  int first_ = 0, carried_ = 0;  // group of the tile that comes next; groups that wait
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

constexpr int kStoredGroups = 32;  // of a piece: 16 KiB of pairs

// Columns of up to 16 rows to pairs, zeros behind the last row and column.
inline void pairs_of_words(const uint8_t* words, int64_t row_bytes, const TilePlace& piece,
                           uint32_t* pairs) {
  for (int row = 0; row < kTileRows; ++row, words += row_bytes) {
    uint32_t* run = pairs + pair_at(row, 0);
    const int bytes = row < piece.rows ? 2 * piece.cols : 0;
    int at = 0;
    for (; at + 16 <= bytes; at += 16, run += kRunsApart) memcpy(run, words + at, 16);
    for (; at < 2 * kGroupCols * piece.groups; at += 16, run += kRunsApart) {
      memset(run, 0, 16);
      if (at < bytes) memcpy(run, words + at, size_t(bytes - at));
    }
  }
}

inline void stored_to_fixed(const CodedView& view, int64_t begin, int64_t end,
                            const FixedTarget& target, uint32_t* pairs) {
  const ColumnTiles pieces = {view.cols, kStoredGroups * kGroupCols};
  const int64_t row_bytes = view.cols * Bf16::fmt.word_bytes();
  RowPacker packer(view, target, pairs);
  for (int64_t tile_row = begin; tile_row < end; ++tile_row) {
    packer.begin(tile_row, uint32_t(target.bases[0]));
    const int64_t row = tile_row * kTileRows, left = view.rows - row;
    for (int64_t n = 0; n < pieces.count(); ++n) {
      const TilePlace piece = {n,
                               row,
                               pieces.first_col(n),
                               int(left < kTileRows ? left : kTileRows),
                               pieces.columns(n),
                               pieces.groups(n)};
      pairs_of_words(view.stream + row * row_bytes + 2 * piece.first_col, row_bytes, piece, pairs);
      packer.take(piece.groups);
    }
  }
}

// ---- the kernels --------------------------------------------------------------------------------

// Pairs of the two tiles of a block, each with room for carried groups, then what the coding keeps.
inline int64_t fixed_pair_bytes(const CodedView& view) {
  const int groups = view.coding == Coding::stored ? kStoredGroups : view.groups(0);
  return int64_t(kCarried + groups) * kGroupPairs * 4;
}

inline Status to_fixed(const CodedView& view, int64_t begin, int64_t end, const FixedTarget& target,
                       uint8_t* at) {
  uint32_t* pairs[kTilesAtOnce];
  for (uint32_t*& p : pairs) {
    p = (uint32_t*)at + kCarried * kGroupPairs;
    at += fixed_pair_bytes(view);
  }
  if (view.coding == Coding::stored) {
    stored_to_fixed(view, begin, end, target, pairs[0]);
    return {};
  }
  return with_source(view, at, [&](auto& source) -> Status {
    using S = std::remove_reference_t<decltype(source)>;
    if constexpr (!std::is_same_v<typename S::Format, Bf16>) {
      return {Corruption::index, 0};  // the op takes bfloat16 only
    } else {
      RowPacker packers[kTilesAtOnce] = {{view, target, pairs[0]}, {view, target, pairs[1]}};
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
      return for_blocks(source, view, begin, end, use, [](const Block<S>&) {});
    }
  });
}

inline int64_t to_fixed_scratch_bytes(const CodedView& view) {
  return kTilesAtOnce * fixed_pair_bytes(view) +
         (view.coding == Coding::stored ? 0 : source_scratch_bytes(view));
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
