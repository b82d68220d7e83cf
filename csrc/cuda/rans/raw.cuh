// A lane's raw bits (docs/format.md, section 5), some groups at a time.
#pragma once
#include "../device.cuh"

namespace codecllm::cuda {

// Not less than two iterations' bytes of any plane: how far the main loop reads ahead.
constexpr int kLoadAhead = 2048;

// Groups per iteration of the main loop: whole containers of every plane. Four where a plane has
// one bit a weight, 16 pairs to a container; the code is larger for it.
template <class F>
constexpr int kUnroll = F::fmt.n_planes > 0 && F::fmt.planes[F::fmt.n_planes - 1].bits == 1 ? 4 : 2;

// Length of an array with an element per plane; a format may have no raw bits at all.
template <class F>
constexpr int kPlaneSlots = F::fmt.n_planes > 0 ? F::fmt.n_planes : 1;

// Containers of an iteration in the planes before plane P; of all planes for P = n_planes.
template <class F, int P>
CLLM_HD constexpr int containers_before() {
  int count = 0;
  for (int p = 0; p < P; ++p) count += kPairsPerGroup * kUnroll<F> * F::fmt.planes[p].bits / 16;
  return count;
}

// Plane P of format F, all known to the compiler. (A loop over `planes` would become one on the
// device, with the format in memory.)
template <class F, int P>
struct PlaneOf {
  static_assert(0 <= P && P < F::fmt.n_planes);
  static constexpr Plane kPlane = F::fmt.planes[P];
  static constexpr int kBits = kPlane.bits, kPerContainer = 16 / kBits;
  static constexpr uint32_t kMask = kPlane.mask;
  static constexpr bool kLowHalf = kPlane.low_half;
  // Containers of an iteration, and of the planes before this one.
  static constexpr int kCount = kPairsPerGroup * kUnroll<F> * kBits / 16;
  static constexpr int kBefore = containers_before<F, P>();
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
  static constexpr int kCount = containers_before<F, F::fmt.n_planes>();
  uint32_t containers[kCount > 0 ? kCount : 1];

  // `fields` with the raw bits of a pair, 4 * group + j of these groups. `pair` must be a constant.
  CLLM_DEVICE uint32_t merge(int pair, uint32_t fields) const {
    for_each_plane<F>([&](auto plane, int) {
      using P = decltype(plane);
      if constexpr (!P::kLowHalf) {
        const uint32_t c = containers[P::kBefore + pair / P::kPerContainer];
        fields =
            select_bits(P::kMask, rotate_right(c, P::kBits * (pair % P::kPerContainer)), fields);
      }
    });
    return fields;
  }
  // Low halves of a pair of 32-bit words.
  CLLM_DEVICE uint32_t low(int pair) const {
    if constexpr (F::fmt.word_bits == 32)
      return containers[PlaneOf<F, F::fmt.n_planes - 1>::kBefore + pair];
    return 0;
  }
};

// A lane's part of a tile's raw plane.
template <class F>
struct RawTile {
  const uint8_t* planes[kPlaneSlots<F>];
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
      constexpr int kOfGroup = P::kBits * kPairsPerGroup > 16 ? P::kBits * kPairsPerGroup / 16 : 1;
      const int count = containers(P::kBits, groups);
      const int first = kPairsPerGroup * group / P::kPerContainer;
      uint32_t* c = to.containers + P::kBefore;
#pragma unroll
      for (int i = 0; i < kOfGroup; ++i)
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
  const uint8_t* at[kPlaneSlots<F>];
  bool half = false;  // of a quad, for planes with one container an iteration

  CLLM_DEVICE explicit RawCursor(const RawTile<F>& tile) {
    for_each_plane<F>([&](auto, int p) { at[p] = tile.planes[p] + 16 * tile.lane; });
  }
  // To the next pair.
  CLLM_DEVICE void advance() {
    for_each_plane<F>([&](auto plane, int p) {
      constexpr int kQuads = decltype(plane)::kCount / 2;  // of the pair
      at[p] += kQuads > 0 ? kQuads * 16 * kLanes : half ? 16 * kLanes - 8 : 8;
    });
    half = !half;
  }
  // The containers of an iteration of the pair, 0 or 1.
  CLLM_DEVICE void load(int iteration, RawBits<F>& to) const {
    for_each_plane<F>([&](auto plane, int p) {
      constexpr int kCount = decltype(plane)::kCount;
      uint32_t* c = to.containers + decltype(plane)::kBefore;
      if constexpr (kCount == 1) {
        c[0] = load_once32(at[p] + 4 * iteration);
      } else if constexpr (kCount == 2) {
        const uint2 v = load_once64(at[p] + 8 * iteration);
        c[0] = v.x;
        c[1] = v.y;
      } else {
#pragma unroll
        for (int quad = 0; quad < kCount / 4; ++quad) {
          const uint4 v = load_once128(at[p] + (iteration * (kCount / 4) + quad) * 16 * kLanes);
          c[4 * quad] = v.x;
          c[4 * quad + 1] = v.y;
          c[4 * quad + 2] = v.z;
          c[4 * quad + 3] = v.w;
        }
      }
    });
  }
};

// Calls f(raw, pair, parity) for every group of a tile, in order: the group's pairs are pair ..
// pair + 3 of `raw`; `parity` is that of the group.
//
// Pipelined: two sets of registers in turn, each loaded again as soon as it was used; nothing is
// copied. That is what the source says. The machine code has all loads of a trip on one scoreboard,
// and waits for one of them two instructions after it was issued (docs/kernels.md): other warps
// hide the latency, not the distance. The last two loads of a tile are too many, from the tile
// behind it. A tile with none there (`last`) leaves its end to the plain loop, as every tile does
// with what does not fill two iterations.
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
