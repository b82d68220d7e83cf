// The coding rans: tiles decoded side by side, so that 4 independent chains of 16 lanes are in
// flight.
//
//   unpack    the raw plane from quads to [container][lane], while the next tile is asked for
//   start     every lane's state from its first two words
//   per group of 16 columns:
//     step    four steps of all chains: slots looked up, states moved on, words shifted in
//     fields  the coded fields out of the slots, escapes replaced by their literals
//     merge   the raw bits into them; to the sink
//   ended     every lane is where the encoder began
//
// Why it looks as it does (one core with AVX-512, weights per nanosecond, random streams):
// steps of one chain after another 0.7; steps of all chains interleaved 2.5; with prefetch of the
// next tile's words 5.8. A masked 32-bit gather per step instead of one 64-bit gather per
// group: 3.0.
#pragma once
#include "tile_rans.h"

namespace codecllm {
namespace {

// ---- the raw plane ------------------------------------------------------------------------------

// Asks for the next tile while this one's raw plane is unpacked: its words, which the gathers of
// the main loop would otherwise wait for, and its raw plane. (In the main loop itself the same
// prefetches cost a quarter of the speed.)
class RansPrefetch {
 public:
  RansPrefetch() = default;
  RansPrefetch(const RansTile& next, int64_t raw_bytes)
      : words_(next.words),
        words_end_(next.words + 2 * size_t(next.limit)),
        raw_(next.raw),
        raw_end_(next.raw + raw_bytes) {}

  // One of the steps in which 16 bytes per lane of raw plane are unpacked.
  CLLM_INLINE void step() {
    for (int i = 0; i < 4 && words_ < words_end_; ++i, words_ += 64) __builtin_prefetch(words_);
    if (raw_ >= raw_end_) return;
    for (int i = 0; i < 8; ++i, raw_ += 64) __builtin_prefetch(raw_, 0, 2);
  }
  void rest() {
    for (; words_ < words_end_; words_ += 64) __builtin_prefetch(words_);
  }

 private:
  const uint8_t *words_ = nullptr, *words_end_ = nullptr, *raw_ = nullptr, *raw_end_ = nullptr;
};

// Raw plane of a tile from quads to [container][lane], all planes one after the other.
template <class F>
inline void unpack_raw(const RansTile& tile, RansPrefetch next, uint32_t* out) {
  const uint8_t* src = tile.raw;
  for (int p = 0; p < F::fmt.n_planes; ++p) {
    const int count = containers(F::fmt.planes[p].bits, tile.groups);
    int i = 0;
    for (; i + 4 <= count; i += 4, src += 16 * kLanes, out += 4 * kLanes) {
      next.step();
      transpose_quads(src, out);
    }
    const int width = count - i;
    for (int lane = 0; lane < kLanes; ++lane)
      for (int k = 0; k < width; ++k)
        memcpy(out + kLanes * k + lane, src + 4 * (width * lane + k), 4);
    src += 4 * kLanes * width;
    out += kLanes * width;
  }
  next.rest();
}

// Unpacked raw planes of tiles of the same width.
template <class F>
struct RawPlanes {
  const uint32_t* const* tiles;
  int plane_at[kMaxPlanes];

  CLLM_INLINE RawPlanes(const uint32_t* const* tiles, int groups) : tiles(tiles) {
    for (int p = 0, at = 0; p < F::fmt.n_planes; ++p) {
      plane_at[p] = at;
      at += kLanes * containers(F::fmt.planes[p].bits, groups);
    }
  }

  // Which container of a plane has pair j of a group, and which one it is in there. Spelled so that
  // `turn` is a constant where a group has whole containers.
  struct Place {
    int container, turn;
  };
  static CLLM_INLINE constexpr Place place(int plane_bits, int group, int j) {
    const int pairs = 16 / plane_bits;  // in a container
    if (pairs <= 4) return {group * (4 / pairs) + j / pairs, j % pairs};
    return {group / (pairs / 4), 4 * (group % (pairs / 4)) + j};
  }

  // Puts the raw bits beside the coded fields of `pair`; returns the low halves.
  CLLM_INLINE V::reg merge(int t, int c, int group, int j, V::reg& pair) const {
    V::reg low = pair;
#pragma GCC unroll 4
    for (int p = 0; p < F::fmt.n_planes; ++p) {
      const Plane plane = F::fmt.planes[p];
      const Place at = place(plane.bits, group, j);
      V::reg raw = V::load(tiles[t] + plane_at[p] + kLanes * at.container + c * V::W);
      if (plane.low_half) {
        low = raw;
        continue;
      }
      if (at.turn) raw = V::rotr(raw, plane.bits * at.turn);
      pair = V::or_(pair, V::and_(raw, V::set1(plane.mask)));
    }
    return low;
  }
};

// ---- the coded plane ----------------------------------------------------------------------------

// Calls f(t, c) for every chunk of lanes of `Count` tiles; both are constants to the compiler.
template <int Count, class Each>
CLLM_INLINE void each_chunk(Each&& f) {
#pragma GCC unroll 8
  for (int t = 0; t < Count; ++t)
#pragma GCC unroll 8
    for (int c = 0; c < kChunks; ++c) f(t, c);
}

// States and places of the lanes of `Count` tiles. A chunk of lanes is a chain of its own.
template <class F, int Count>
struct RansChains {
  using reg = V::reg;
  const RansTile* tiles;
  int scale_bits;
  reg slot_mask, base[Count], limit[Count];
  reg x[Count][kChunks], pos[Count][kChunks];

  CLLM_INLINE RansChains(const RansTile* tiles, int scale_bits)
      : tiles(tiles), scale_bits(scale_bits), slot_mask(V::set1((1u << scale_bits) - 1)) {
#pragma GCC unroll 8
    for (int t = 0; t < Count; ++t) {
      base[t] = V::set1(tiles[t].window_base * 0x10001u << F::fmt.coded_shift);
      limit[t] = V::set1(tiles[t].limit);
    }
    each_chunk<Count>([&](int t, int c) __attribute__((always_inline)) {
      pos[t][c] = V::load(tiles[t].start + c * V::W);
      x[t][c] = V::fetch(tiles[t].words, V::min(pos[t][c], limit[t])).lo;
      pos[t][c] = V::add(pos[t][c], V::set1(2));
    });
  }

  // Four steps of every lane: the table entries of a group's pairs.
  CLLM_INLINE void step(reg (&entry)[Count][kChunks][kPairsPerGroup]) {
    V::Words words[Count][kChunks];
    each_chunk<Count>([&](int t, int c) __attribute__((always_inline)) {
      words[t][c] = V::fetch(tiles[t].words, V::min(pos[t][c], limit[t]));
    });
#pragma GCC unroll 4
    for (int j = 0; j < kPairsPerGroup; ++j)
      each_chunk<Count>([&](int t, int c) __attribute__((always_inline)) {
        const reg e = V::gather(tiles[t].slots, V::and_(x[t][c], slot_mask));
        x[t][c] = rans_advance<V>(x[t][c], e, scale_bits);
        V::renorm(x[t][c], words[t][c], pos[t][c]);
        entry[t][c][j] = e;
      });
  }

  CLLM_INLINE reg fields(int t, reg entry) const {
    return V::add(coded_fields<V, F::fmt.coded_shift>(entry), base[t]);
  }

  // Fields of the four pairs of a chunk that has escapes: theirs are literals, the next words of
  // their lanes. Rare and scalar.
  CLLM_INLINE void read_literals(int t, int c, const reg (&entry)[kPairsPerGroup],
                                 reg (&out)[kPairsPerGroup]) {
    uint32_t e[kPairsPerGroup][V::W], f[kPairsPerGroup][V::W], at[V::W];
    for (int j = 0; j < kPairsPerGroup; ++j) {
      V::store(e[j], entry[j]);
      V::store(f[j], fields(t, entry[j]));
    }
    V::store(at, pos[t][c]);
    replace_escapes(tiles[t], e, f, at);
    pos[t][c] = V::load(at);
    for (int j = 0; j < kPairsPerGroup; ++j) out[j] = V::load(f[j]);
  }

  CLLM_INLINE bool ended() const {
    bool intact = true;
    each_chunk<Count>([&](int t, int c) __attribute__((always_inline)) {
      intact &= V::all_eq(x[t][c], V::set1(kRansL)) &
                V::all_eq(pos[t][c], V::load(tiles[t].end + c * V::W));
    });
    return intact;
  }

 private:
  static inline void replace_escapes(const RansTile& tile,
                                     const uint32_t (&entry)[kPairsPerGroup][V::W],
                                     uint32_t (&fields)[kPairsPerGroup][V::W],
                                     uint32_t (&at)[V::W]) {
    for (int lane = 0; lane < V::W; ++lane)
      for (int j = 0; j < kPairsPerGroup; ++j)
        if (entry[j][lane] >= kEscapeFrom)
          fields[j][lane] =
              literal_fields(load_word(tile, at[lane]++), F::fmt.value_mask(), F::fmt.coded_shift);
  }
};

CLLM_INLINE V::reg highest(const V::reg (&entry)[kPairsPerGroup]) {
  return V::max(V::max(entry[0], entry[1]), V::max(entry[2], entry[3]));
}

// Decodes `Count` tiles into the sink.
template <class F, int Count, class Sink>
CLLM_INLINE bool decode_tiles(const RansTile* tiles, int scale_bits, const uint32_t* const* raw,
                              Sink& sink) {
  using reg = V::reg;
  const int groups = tiles[0].groups;
  const RawPlanes<F> planes(raw, groups);
  RansChains<F, Count> chains(tiles, scale_bits);
  for (int group = 0; group < groups; ++group) {
    reg entry[Count][kChunks][kPairsPerGroup];
    chains.step(entry);
    const auto emit = [&](int t, int c, int j, reg pair) __attribute__((always_inline)) {
      const reg low = planes.merge(t, c, group, j, pair);
      if (F::fmt.flip) pair = V::xor_(pair, V::set1(F::fmt.flip));
      sink.put(t, c, group, j, pair, low);
    };
    const auto emit_chunk = [&](int t, int c) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int j = 0; j < kPairsPerGroup; ++j) emit(t, c, j, chains.fields(t, entry[t][c][j]));
    };
    reg all = entry[0][0][0];
    each_chunk<Count>([&](int t, int c) __attribute__((always_inline)) {
      all = V::max(all, highest(entry[t][c]));
    });
    // One test for all chains, and a path of its own for escapes: the common one stays free of
    // merges, which would cost registers.
    if (__builtin_expect(!V::any_ge(all, kEscapeFrom), 1)) {
      each_chunk<Count>(emit_chunk);
      continue;
    }
    each_chunk<Count>([&](int t, int c) __attribute__((always_inline)) {
      if (!V::any_ge(highest(entry[t][c]), kEscapeFrom)) return emit_chunk(t, c);
      reg fields[kPairsPerGroup];
      chains.read_literals(t, c, entry[t][c], fields);
#pragma GCC unroll 4
      for (int j = 0; j < kPairsPerGroup; ++j) emit(t, c, j, fields[j]);
    });
  }
  return chains.ended();
}

// ---- the source ---------------------------------------------------------------------------------

template <class F>
class RansSource {
 public:
  using Format = F;
  using Tile = RansTile;
  using Prefetch = RansPrefetch;

  RansSource(const CodedView& view, uint8_t* scratch) : view_(view) {
    for (int t = 0; t < kTilesAtOnce; ++t)
      raw_[t] = (uint32_t*)(scratch + t * view.plane_tile_bytes);
  }

  bool locate(int64_t tile_row, int64_t col_tile, Tile& tile) {
    return locate_rans(view_, tile_row, col_tile, segment_, tile);
  }
  Prefetch prefetch(const Tile& next) const {
    return Prefetch(next, raw_tile_bytes(F::fmt, next.groups));
  }
  template <int Count, class Sink>
  CLLM_INLINE bool decode(const Tile* tiles, const Prefetch* prefetch, Sink& sink) {
    for (int t = 0; t < Count; ++t) unpack_raw<F>(tiles[t], prefetch[t], raw_[t]);
    return decode_tiles<F, Count>(tiles, view_.scale_bits, raw_, sink);
  }

  bool has_second_pass() const { return view_.predictor; }
  void second_pass(const Tile& tile, uint32_t* pairs) const {
    for (int row = 0; row < kTileRows; ++row) {
      uint32_t value = tile.seed;
      uint32_t* run = pairs + pair_at(row, 0);
      for (int left = 2 * tile.groups; left > 0; --left, run += kRunsApart)
        for (int col = 0; col < 8; ++col) run[col / 2] = undo_left<F>(run[col / 2], col & 1, value);
    }
  }

 private:
  const CodedView& view_;
  uint32_t* raw_[kTilesAtOnce];
  int64_t segment_ = 0;
};

}  // namespace
}  // namespace codecllm
