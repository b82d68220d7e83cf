// A lane's raw bits (docs/format.md, section 5), some groups at a time.
#pragma once
#include "device.cuh"

namespace codecllm::cuda {

// Not less than two iterations' bytes of any plane: how far the main loop reads ahead.
constexpr int kLoadAhead = 2048;

// Groups per iteration of the main loop: whole containers of every plane. Four where a plane has
// one bit a weight, 16 pairs to a container; the code is larger for it.
template <class F>
constexpr int kUnroll = F::fmt.planes[F::fmt.n_planes - 1].bits == 1 ? 4 : 2;

// Plane P of format F, all known to the compiler. (A loop over `planes` would become one on the
// device, with the format in memory.)
template <class F, int P>
struct PlaneOf {
  static constexpr Plane kPlane = F::fmt.planes[P];
  static constexpr int kBits = kPlane.bits, kPerContainer = 16 / kBits;
  static constexpr uint32_t kMask = kPlane.mask;
  static constexpr bool kLowHalf = kPlane.low_half;
  // Containers of an iteration, and of the planes before this one.
  static constexpr int kCount = kPairsPerGroup * kUnroll<F> * kBits / 16;
  static constexpr int before() {
    if constexpr (P == 0)
      return 0;
    else
      return PlaneOf<F, P - 1>::kBefore + PlaneOf<F, P - 1>::kCount;
  }
  static constexpr int kBefore = before();
};

template <class F, class Each, int P = 0>
CLLM_DEVICE void for_each_plane(Each&& each) {
  if constexpr (P < F::fmt.n_planes) {
    each(PlaneOf<F, P>{}, P);
    for_each_plane<F, Each&, P + 1>(each);
  }
}

CLLM_DEVICE uint32_t rotate_right(uint32_t v, int n) {
  return n ? v >> n | v << (32 - n) : v;  // the compiler makes it one funnel shift
}

// Raw bits of kUnroll groups.
template <class F>
struct RawBits {
  using Last = PlaneOf<F, F::fmt.n_planes - 1>;
  static constexpr int kCount = Last::kBefore + Last::kCount;
  uint32_t containers[kCount];

  // Pair n of these groups (n = 4 * group + j): its bits among `fields`. `n` must be a constant.
  CLLM_DEVICE uint32_t merge(int n, uint32_t fields) const {
    for_each_plane<F>([&](auto plane, int) {
      using P = decltype(plane);
      if constexpr (!P::kLowHalf) {
        const uint32_t c = containers[P::kBefore + n / P::kPerContainer];
        fields = select_bits(P::kMask, rotate_right(c, P::kBits * (n % P::kPerContainer)), fields);
      }
    });
    return fields;
  }
  // Low halves of a pair of 32-bit words.
  CLLM_DEVICE uint32_t low(int n) const {
    if constexpr (F::fmt.word_bits == 32) return containers[Last::kBefore + n];
    return 0;
  }
};

// A lane's part of a tile's raw plane.
template <class F>
struct RawTile {
  const uint8_t* planes[F::fmt.n_planes];
  int lane, groups;

  CLLM_DEVICE RawTile(const uint8_t* tile, int lane, int groups) : lane(lane), groups(groups) {
    for_each_plane<F>([&](auto plane, int p) {
      planes[p] = tile;
      tile += 4 * kLanes * containers(decltype(plane)::kBits, groups);
    });
  }
  // Iterations that find all their containers in full quads.
  CLLM_DEVICE int iterations() const {
    int least = groups / kUnroll<F>;
    for_each_plane<F>([&](auto plane, int) {
      using P = decltype(plane);
      const int full = containers(P::kBits, groups) / 4 * 4 / P::kCount;
      least = full < least ? full : least;
    });
    return least;
  }
  // One group anywhere, for what is left after the main loop. Fills the first group of `to`.
  CLLM_DEVICE void load_group(int group, RawBits<F>& to) const {
    for_each_plane<F>([&](auto plane, int p) {
      using P = decltype(plane);
      constexpr int n = P::kBits * kPairsPerGroup > 16 ? P::kBits * kPairsPerGroup / 16 : 1;
      const int count = containers(P::kBits, groups);
      const int first = kPairsPerGroup * group / P::kPerContainer;
      uint32_t* c = to.containers + P::kBefore;
#pragma unroll
      for (int i = 0; i < n; ++i)
        c[i] = load_once32(planes[p] + 4 * container_at(first + i, lane, count));
      // Pairs of the group to the places of the container's first ones.
      if constexpr (P::kPerContainer > kPairsPerGroup)
        c[0] = rotate_right(c[0], P::kBits * (kPairsPerGroup * group % P::kPerContainer));
    });
  }
};

// Walks over the full quads of a lane, a pair of iterations (2 * kUnroll groups) at a time.
template <class F>
struct RawCursor {
  const uint8_t* at[F::fmt.n_planes];
  bool half = false;  // of a quad, for planes with one container an iteration

  CLLM_DEVICE explicit RawCursor(const RawTile<F>& tile) {
    for_each_plane<F>([&](auto, int p) { at[p] = tile.planes[p] + 16 * tile.lane; });
  }
  // To the next pair.
  CLLM_DEVICE void advance() {
    for_each_plane<F>([&](auto plane, int p) {
      constexpr int n = decltype(plane)::kCount;
      at[p] += n > 1 ? n / 2 * 16 * kLanes : half ? 16 * kLanes - 8 : 8;
    });
    half = !half;
  }
  // The containers of an iteration of the pair, 0 or 1.
  CLLM_DEVICE void load(int iteration, RawBits<F>& to) const {
    for_each_plane<F>([&](auto plane, int p) {
      constexpr int n = decltype(plane)::kCount;
      uint32_t* c = to.containers + decltype(plane)::kBefore;
      if constexpr (n == 1) {
        c[0] = load_once32(at[p] + 4 * iteration);
      } else if constexpr (n == 2) {
        const uint2 v = load_once64(at[p] + 8 * iteration);
        c[0] = v.x, c[1] = v.y;
      } else {
#pragma unroll
        for (int q = 0; q < n / 4; ++q) {
          const uint4 v = load_once128(at[p] + (iteration * (n / 4) + q) * 16 * kLanes);
          c[4 * q] = v.x, c[4 * q + 1] = v.y, c[4 * q + 2] = v.z, c[4 * q + 3] = v.w;
        }
      }
    });
  }
};

// Calls f(raw, n, parity) for every group of a tile, in order: the group's pairs are n .. n + 3 of
// `raw`; `parity` is that of the group.
//
// Pipelined: two sets of registers in turn, each loaded again as soon as it was used; nothing is
// copied. (Loads for the same iteration do not stay where they are written: the compiler moves them
// down to their use.) The last two loads of a tile are too many, from the tile behind it. A tile
// with none there (`last`) leaves its end to the plain loop, as every tile does with what does not
// fill two iterations.
template <class F, bool Pipelined, class Each>
CLLM_DEVICE void for_each_group(const RawTile<F>& tile, bool last, Each&& f) {
  int iterations = 0;
  if constexpr (Pipelined) {
    iterations = uniform((tile.iterations() - (last ? 2 : 0)) & ~1);
    if (iterations > 0) {
      RawCursor<F> cursor(tile);
      RawBits<F> even, odd;
      cursor.load(0, even);
      cursor.load(1, odd);
      const auto pair = [&] {
#pragma unroll
        for (int u = 0; u < kUnroll<F>; ++u) f(even, kPairsPerGroup * u, u % 2);
        cursor.advance();
        cursor.load(0, even);
#pragma unroll
        for (int u = 0; u < kUnroll<F>; ++u) f(odd, kPairsPerGroup * u, u % 2);
        cursor.load(1, odd);
      };
      // Eight groups to a trip.
      constexpr int kTrip = 8 / kUnroll<F>;
      int left = iterations;
#pragma unroll 1
      for (; left >= kTrip; left -= kTrip) {
        pair();
        if constexpr (kTrip > 2) pair();
      }
      if (kTrip > 2 && left) pair();
    } else {
      iterations = 0;
    }
  }
#pragma unroll 1
  for (int group = iterations * kUnroll<F>; group < tile.groups; ++group) {
    RawBits<F> raw;
    tile.load_group(group, raw);
    f(raw, 0, group % 2);
  }
}

}  // namespace codecllm::cuda
