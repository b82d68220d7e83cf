// The decode loop: NT tiles side by side, so that 4 independent chains of 16 lanes are in flight.
//
// Why it looks as it does (one core with AVX-512, weights per nanosecond, random streams):
// steps of one chain after another 0.7; steps of all chains interleaved 2.5; with prefetch of the
// next tile's words 5.8. A masked 32-bit gather per step instead of one 64-bit gather per group: 3.0.
#pragma once
#include "coded_view.h"
#include "simd.h"

namespace codecllm {
namespace {

constexpr int kChunks = kLanes / V::W;  // registers per tile

// Raw plane of a tile from quads to [container][lane], all planes one after the other.
template <class F>
inline void unpack_raw(const Tile& tile, uint32_t* out) {
  const uint8_t* src = tile.raw;
  for (int p = 0; p < F::fmt.n_planes; ++p) {
    int count = containers(F::fmt.planes[p].bits, tile.groups);
    int i = 0;
    for (; i + 4 <= count; i += 4, src += 16 * kLanes, out += 4 * kLanes) {
      V::transpose_quad(src, out);
    }
    int width = count - i;
    for (int lane = 0; lane < kLanes; ++lane)
      for (int k = 0; k < width; ++k)
        memcpy(out + kLanes * k + lane, src + 4 * (width * lane + k), 4);
    src += 4 * kLanes * width;
    out += kLanes * width;
  }
}

// Spreads the fetching of the next tile over the groups of this one.
struct Prefetch {
  const uint8_t* words = nullptr;
  const uint8_t* raw = nullptr;
  size_t words_step = 0, raw_step = 0;

  void set(const Tile& next, int64_t raw_bytes, int groups) {
    words = next.words;
    raw = next.raw;
    words_step = size_t(2 * next.limit) / groups + 1;
    raw_step = size_t(raw_bytes) / groups + 1;
  }
  inline __attribute__((always_inline)) void step(int group) const {
    if (!words) return;
    run(words + group * words_step, words_step);
    run(raw + group * raw_step, raw_step);
  }
  static inline __attribute__((always_inline)) void run(const uint8_t* p, size_t n) {
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch(p + i);
  }
};

// The lanes of one chunk whose group has an escape read their literals. Rare and scalar.
template <class F>
__attribute__((noinline)) void read_literals(const Tile& tile, const V::reg (&entry)[4],
                                             V::reg (&fields)[4], V::reg& pos) {
  uint32_t e[4][V::W], f[4][V::W], p[V::W];
  for (int j = 0; j < 4; ++j) V::store(e[j], entry[j]), V::store(f[j], fields[j]);
  V::store(p, pos);
  for (int lane = 0; lane < V::W; ++lane)
    for (int j = 0; j < 4; ++j)
      if (e[j][lane] >= kEscapeFrom)
        f[j][lane] = literal_fields(load_word(tile, p[lane]++), F::fmt.value_mask(),
                                    F::fmt.coded_shift);
  for (int j = 0; j < 4; ++j) fields[j] = V::load(f[j]);
  pos = V::load(p);
}

// Decodes NT tiles of `groups` groups; sink.put(tile, chunk, group, j, pair, low) gets every pair
// register in lane order (low: the low halves of 32-bit words). False: a lane does not end as the
// encoder began; the sink has then seen wrong pairs.
template <class F, int NT, class Sink>
inline __attribute__((always_inline)) bool decode_tiles(const Tile* tiles, int scale_bits,
                                                        const uint32_t* const* raw,
                                                        const Prefetch* prefetch, Sink& sink) {
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
    reg entry[NT][kChunks][4], fields[NT][kChunks][4];
#pragma GCC unroll 8
    for (int t = 0; t < NT; ++t) {
      prefetch[t].step(g);
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
#pragma GCC unroll 8
    for (int t = 0; t < NT; ++t) {
#pragma GCC unroll 8
      for (int c = 0; c < kChunks; ++c) {
        reg(&e)[4] = entry[t][c];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
          fields[t][c][j] = V::add(coded_fields<V, fmt.coded_shift>(e[j]), base[t]);
        reg highest = V::max(V::max(e[0], e[1]), V::max(e[2], e[3]));
        if (__builtin_expect(V::any_ge(highest, kEscapeFrom), 0)) {
          reg f[4] = {fields[t][c][0], fields[t][c][1], fields[t][c][2], fields[t][c][3]};
          reg q = pos[t][c];  // copies, so that the loop's own stay in registers
          read_literals<F>(tiles[t], {e[0], e[1], e[2], e[3]}, f, q);
          for (int j = 0; j < 4; ++j) fields[t][c][j] = f[j];
          pos[t][c] = q;
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          reg pair = fields[t][c][j], low = pair;
#pragma GCC unroll 4
          for (int p = 0; p < fmt.n_planes; ++p) {
            constexpr const Plane* planes = F::fmt.planes;
            const int per_container = 16 / planes[p].bits;
            const int n = 4 * g + j;
            reg r = V::load(raw[t] + plane_at[p] + kLanes * (n / per_container) + c * V::W);
            if (planes[p].low_half) {
              low = r;
              continue;
            }
            if (n % per_container) r = V::rotr(r, planes[p].bits * (n % per_container));
            pair = V::or_(pair, V::and_(r, V::set1(planes[p].mask)));
          }
          if (fmt.flip) pair = V::xor_(pair, V::set1(fmt.flip));
          sink.put(t, c, g, j, pair, low);
        }
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
