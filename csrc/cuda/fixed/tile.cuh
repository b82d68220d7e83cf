// A tile of `fixed`: its place follows from its number, its list from the index. Whatever the bytes
// say, nothing outside the tensors is read: sizes are checked on the host (csrc/torch), the index
// and the list here.
#pragma once
#include "../source.cuh"
#include "bits.cuh"

namespace codecllm::cuda {

// A unit: the groups that a lane reads in three quads of 16 bytes.
constexpr int kUnitBytes = int(fixed_tile_bytes(kFixedUnit));

struct FixedTile : LocatedTile {
  const uint8_t* plane;
  int columns;              // inside the matrix
  uint32_t list, list_end;  // entries
  uint32_t entry;           // the first, on its way while the groups are multiplied
};

CLLM_DEVICE uint32_t load_listed(const CodedView& matrix, uint32_t i) {
  return __ldg((const uint32_t*)matrix.raw + i);
}

CLLM_DEVICE FixedTile locate_fixed(const CodedView& matrix, int64_t tile_row, int64_t col_tile) {
  FixedTile tile;
  const int64_t number = tile_row * matrix.col_tiles + col_tile;
  tile.list = number ? __ldg(matrix.index + number - 1) : 0;
  tile.list_end = __ldg(matrix.index + number);
  tile.plane = matrix.stream + matrix.plane_at(tile_row, col_tile);
  tile.groups = matrix.groups(col_tile);
  tile.columns = matrix.column_tiles().columns(col_tile);
  tile.segment = int(segment_of(matrix, kFirstTileRow, tile_row));
  place_tile(matrix, tile_row, tile);
  tile.valid &= tile.list <= tile.list_end && int64_t(tile.list_end) <= matrix.listed();
  tile.entry = tile.valid && tile.list < tile.list_end ? load_listed(matrix, tile.list) : 0;
  return tile;
}

// The groups of a unit, as a lane reads them.
struct FixedUnit {
  uint4 quads[3];

  CLLM_DEVICE void load(const uint8_t* at) {
#pragma unroll
    for (int q = 0; q < 3; ++q) quads[q] = load_once128(at + q * 16 * kLanes);
  }
  // Calls f(containers, group) for the four groups.
  template <class Each>
  CLLM_DEVICE void each(Each&& f) const {
    const uint32_t c[kFixedUnit][kFixedContainers] = {{quads[0].x, quads[0].y, quads[0].z},
                                                      {quads[0].w, quads[1].x, quads[1].y},
                                                      {quads[1].z, quads[1].w, quads[2].x},
                                                      {quads[2].y, quads[2].z, quads[2].w}};
#pragma unroll
    for (int group = 0; group < kFixedUnit; ++group) f(c[group], group);
  }
};

// Calls f(containers, parity) for every group of a tile, in order, as `lane` has them. `parity` is
// that of the group.
//
// Ahead: two units are under way while others are multiplied, in two sets of registers, each loaded
// again as soon as it was used. Nothing is read beyond the tile: the loads that would are left out,
// one compare a unit.
template <bool Ahead, class Each>
CLLM_DEVICE void for_each_group(const FixedTile& tile, int lane, Each&& f) {
  const auto use = [&](const FixedUnit& unit) {
    unit.each([&](const auto& containers, int group) { f(containers, group % 2); });
  };
  const uint8_t* at = tile.plane + 16 * lane;
  const int units = tile.groups / kFixedUnit;
  if constexpr (Ahead) {
    int left = uniform(units);
    FixedUnit even, odd;
    if (left > 0) even.load(at);
    if (left > 1) odd.load(at + kUnitBytes);
#pragma unroll 1
    for (; left >= 2; left -= 2) {
      use(even);
      at += 2 * kUnitBytes;
      if (left > 2) even.load(at);
      use(odd);
      if (left > 3) odd.load(at + kUnitBytes);
    }
    if (left) use(even);
  } else {
#pragma unroll 1
    for (int unit = 0; unit < units; ++unit, at += kUnitBytes) {
      FixedUnit all;
      all.load(at);
      use(all);
    }
  }
  const int count = kFixedContainers * tile.groups;
#pragma unroll 1
  for (int group = units * kFixedUnit; group < tile.groups; ++group) {
    uint32_t containers[kFixedContainers];
#pragma unroll
    for (int i = 0; i < kFixedContainers; ++i)
      containers[i] =
          load_once32(tile.plane + 4 * container_at(kFixedContainers * group + i, lane, count));
    f(containers, group % 2);
  }
}

}  // namespace codecllm::cuda
