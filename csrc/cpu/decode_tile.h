// The decode loop: NT tiles side by side, so that 4 independent chains of 16 lanes are in flight.
//
// Why it looks as it does (one core with AVX-512, weights per nanosecond, random streams):
// steps of one chain after another 0.7; steps of all chains interleaved 2.5; with prefetch of the
// next tile's words 5.8. A masked 32-bit gather per step instead of one 64-bit gather per
// group: 3.0.
#pragma once
#include "../core/coded_view.h"
#include "simd.h"

namespace codecllm {
namespace {

constexpr int kChunks = kLanes / V::W;  // registers per tile

// Asks for the next tile while this one's raw plane is unpacked: its words, which the gathers of
// the main loop would otherwise wait for, and its raw plane. (In the main loop itself the same
// prefetches cost a quarter of the speed.)
class Prefetch {
 public:
  Prefetch() = default;
  Prefetch(const Tile& next, int64_t raw_bytes)
      : words_(next.words),
        words_end_(next.words + 2 * size_t(next.limit)),
        raw_(next.raw),
        raw_end_(next.raw + raw_bytes) {}

  // One of the steps in which 16 bytes per lane of raw plane are unpacked.
  inline __attribute__((always_inline)) void step() {
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
inline void unpack_raw(const Tile& tile, Prefetch next, uint32_t* out) {
  const uint8_t* src = tile.raw;
  for (int p = 0; p < F::fmt.n_planes; ++p) {
    int count = containers(F::fmt.planes[p].bits, tile.groups);
    int i = 0;
    for (; i + 4 <= count; i += 4, src += 16 * kLanes, out += 4 * kLanes) {
      next.step();
      V::transpose_quad(src, out);
    }
    int width = count - i;
    for (int lane = 0; lane < kLanes; ++lane)
      for (int k = 0; k < width; ++k)
        memcpy(out + kLanes * k + lane, src + 4 * (width * lane + k), 4);
    src += 4 * kLanes * width;
    out += kLanes * width;
  }
  next.rest();
}

// Replaces the coded fields of one chunk's escapes by the literals of their lanes. Rare and scalar.
template <class F>
inline void read_literals(const Tile& tile, const uint32_t (&entry)[4][V::W],
                          uint32_t (&fields)[4][V::W], uint32_t (&pos)[V::W]) {
  for (int lane = 0; lane < V::W; ++lane)
    for (int j = 0; j < 4; ++j)
      if (entry[j][lane] >= kEscapeFrom)
        fields[j][lane] =
            literal_fields(load_word(tile, pos[lane]++), F::fmt.value_mask(), F::fmt.coded_shift);
}

// Offset (in containers) of a pair's container in its plane, and its place inside it.
struct PlaceInPlane {
  int container, turn;
};
CLLM_HD constexpr PlaceInPlane place_in_plane(int plane_bits, int group, int j) {
  int per = 16 / plane_bits;
  // Spelled so that the turn is a constant where a group has whole containers.
  if (per <= 4) return {group * (4 / per) + j / per, j % per};
  return {group / (per / 4), 4 * (group % (per / 4)) + j};
}

// Decodes NT tiles of `groups` groups; sink.put(tile, chunk, group, j, pair, low) gets every pair
// register in lane order (low: the low halves of 32-bit words). False: a lane does not end as the
// encoder began; the sink has then seen wrong pairs.
template <class F, int NT, class Sink>
inline __attribute__((always_inline)) bool decode_tiles(const Tile* tiles, int scale_bits,
                                                        const uint32_t* const* raw, Sink& sink) {
  using reg = V::reg;
  constexpr WeightFormat fmt = F::fmt;
  const int groups = tiles[0].groups;
  const reg slot_mask = V::set1((1u << scale_bits) - 1);
  int plane_at[kMaxPlanes];
  for (int p = 0, at = 0; p < fmt.n_planes; ++p) {
    plane_at[p] = at;
    at += kLanes * containers(fmt.planes[p].bits, groups);
  }

  reg x[NT][kChunks], pos[NT][kChunks], base[NT], limit[NT];
#pragma GCC unroll 8
  for (int t = 0; t < NT; ++t) {
    base[t] = V::set1(tiles[t].window_base * 0x10001u << fmt.coded_shift);
    limit[t] = V::set1(tiles[t].limit);
#pragma GCC unroll 8
    for (int c = 0; c < kChunks; ++c) {
      pos[t][c] = V::load(tiles[t].start + c * V::W);
      x[t][c] = V::fetch(tiles[t].words, V::min(pos[t][c], limit[t])).lo;
      pos[t][c] = V::add(pos[t][c], V::set1(2));
    }
  }

  for (int g = 0; g < groups; ++g) {
    V::Words words[NT][kChunks];
    reg entry[NT][kChunks][4];
#pragma GCC unroll 8
    for (int t = 0; t < NT; ++t) {
#pragma GCC unroll 8
      for (int c = 0; c < kChunks; ++c)
        words[t][c] = V::fetch(tiles[t].words, V::min(pos[t][c], limit[t]));
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 8
      for (int t = 0; t < NT; ++t) {
#pragma GCC unroll 8
        for (int c = 0; c < kChunks; ++c) {
          reg e = V::gather(tiles[t].slots, V::and_(x[t][c], slot_mask));
          x[t][c] = rans_advance<V>(x[t][c], e, scale_bits);
          V::renorm(x[t][c], words[t][c], pos[t][c]);
          entry[t][c][j] = e;
        }
      }
    }
    // Coded fields of a pair to the sink, with the raw bits of its planes.
    auto emit = [&](int t, int c, int j, reg pair) __attribute__((always_inline)) {
      reg low = pair;
#pragma GCC unroll 4
      for (int p = 0; p < fmt.n_planes; ++p) {
        const Plane plane = F::fmt.planes[p];
        const PlaceInPlane at = place_in_plane(plane.bits, g, j);
        reg r = V::load(raw[t] + plane_at[p] + kLanes * at.container + c * V::W);
        if (plane.low_half) {
          low = r;
          continue;
        }
        if (at.turn) r = V::rotr(r, plane.bits * at.turn);
        pair = V::or_(pair, V::and_(r, V::set1(plane.mask)));
      }
      if (fmt.flip) pair = V::xor_(pair, V::set1(fmt.flip));
      sink.put(t, c, g, j, pair, low);
    };
    reg highest = entry[0][0][0];
#pragma GCC unroll 8
    for (int t = 0; t < NT; ++t)
#pragma GCC unroll 8
      for (int c = 0; c < kChunks; ++c)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) highest = V::max(highest, entry[t][c][j]);
    // One test for all chains, and a path of its own for escapes: the common one stays free of
    // merges, which would cost registers.
    if (__builtin_expect(!V::any_ge(highest, kEscapeFrom), 1)) {
#pragma GCC unroll 8
      for (int t = 0; t < NT; ++t)
#pragma GCC unroll 8
        for (int c = 0; c < kChunks; ++c)
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j)
            emit(t, c, j, V::add(coded_fields<V, fmt.coded_shift>(entry[t][c][j]), base[t]));
    } else {
#pragma GCC unroll 8
      for (int t = 0; t < NT; ++t)
#pragma GCC unroll 8
        for (int c = 0; c < kChunks; ++c) {
          reg chunk_highest = V::max(V::max(entry[t][c][0], entry[t][c][1]),
                                     V::max(entry[t][c][2], entry[t][c][3]));
          if (!V::any_ge(chunk_highest, kEscapeFrom)) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j)
              emit(t, c, j, V::add(coded_fields<V, fmt.coded_shift>(entry[t][c][j]), base[t]));
            continue;
          }
          uint32_t e[4][V::W], fields[4][V::W], p[V::W];
          for (int j = 0; j < 4; ++j) {
            V::store(e[j], entry[t][c][j]);
            V::store(fields[j], V::add(coded_fields<V, fmt.coded_shift>(entry[t][c][j]), base[t]));
          }
          V::store(p, pos[t][c]);
          read_literals<F>(tiles[t], e, fields, p);
          pos[t][c] = V::load(p);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) emit(t, c, j, V::load(fields[j]));
        }
    }
  }
  bool intact = true;
#pragma GCC unroll 8
  for (int t = 0; t < NT; ++t)
#pragma GCC unroll 8
    for (int c = 0; c < kChunks; ++c)
      intact &= V::all_eq(x[t][c], V::set1(kRansL)) &
                V::all_eq(pos[t][c], V::load(tiles[t].end + c * V::W));
  return intact;
}

// Keeps pair registers in lane order: [group][j][lane].
struct StorePairs {
  uint32_t* pairs[2];
  uint32_t* low[2];
  bool has_low;

  inline __attribute__((always_inline)) void put(int t, int c, int g, int j, V::reg pair,
                                                 V::reg lows) {
    int at = (4 * g + j) * kLanes + c * V::W;
    V::store(pairs[t] + at, pair);
    if (has_low) V::store(low[t] + at, lows);
  }
};

// Undoes predictor `left` in a tile of pair registers (after flip: so flip is taken off and on).
template <class F>
inline void undo_left(const Tile& tile, uint32_t* pairs) {
  constexpr WeightFormat fmt = F::fmt;
  const uint32_t mask = fmt.value_mask(), half = 1u << (fmt.coded_bits - 1);
  for (int row = 0; row < kTileRows; ++row) {
    uint32_t value = tile.seed;
    for (int g = 0; g < tile.groups; ++g)
      for (int col = 0; col < kGroupCols; ++col) {
        int lane = row % 8 * 4 + col % 8 / 2, j = row / 8 + 2 * (col / 8);
        uint32_t& pair = pairs[(4 * g + j) * kLanes + lane];
        int shift = fmt.coded_shift + 16 * (col & 1);
        uint32_t flip = fmt.flip >> shift & mask;
        uint32_t residual = (pair >> shift & mask) ^ flip;
        value = (value + residual - half) & mask;
        pair = (pair & ~(mask << shift)) | (value ^ flip) << shift;
      }
  }
}

}  // namespace
}  // namespace codecllm
