// From the tile index to a lane's words and raw bits. Whatever the bytes say, nothing outside the
// tensors is read: sizes are checked on the host (csrc/torch), offsets here.
#pragma once
#include "../source.cuh"
#include "lane.cuh"
#include "raw.cuh"

namespace codecllm::cuda {

struct RansTile : LocatedTile {
  const uint8_t* words;
  uint32_t start, end, total;  // words of one lane, and of all
  const uint8_t* raw;
  bool last;  // less than kLoadAhead bytes of raw plane behind it
};

// The record of a tile: where its words begin, and by prefix sums, where a lane's do. A collective.
CLLM_DEVICE RansTile locate_rans(const CodedView& matrix, int64_t tile_row, int64_t col_tile,
                                 int lane) {
  RansTile tile;
  const int64_t number = tile_row * matrix.col_tiles + col_tile;
  const uint32_t* record = matrix.index + number * (2 + matrix.len_bits);
  const uint32_t first = __ldg(record), second = __ldg(record + 1);
  tile.groups = matrix.groups(col_tile);
  const int64_t raw_at = tile_row * matrix.plane_row_bytes + col_tile * matrix.plane_tile_bytes;
  tile.raw = matrix.raw + raw_at;
  tile.last =
      matrix.tile_rows * matrix.plane_row_bytes - raw_at < matrix.plane_tile_bytes + kLoadAhead;

  const int me = threadIdx.x & 31, bit = me * matrix.len_bits, word = bit >> 5;
  const uint32_t low = __ldg(record + 2 + word);
  const uint32_t high = word + 1 < matrix.len_bits ? __ldg(record + 3 + word) : 0;
  const uint64_t both = (uint64_t(high) << 32 | low) >> (bit & 31);
  const uint32_t length = (second & 0xffff) + (uint32_t(both) & ((1u << matrix.len_bits) - 1));
  uint32_t end = length;
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
    const uint32_t before = __shfl_up_sync(~0u, end, distance);
    if (me >= distance) end += before;
  }
  tile.total = __shfl_sync(~0u, end, kLanes - 1);
  tile.end = __shfl_sync(~0u, end, lane);
  tile.start = tile.end - __shfl_sync(~0u, length, lane);

  const int64_t begin = int64_t(first) * kStreamAlign;
  tile.words = matrix.stream + begin;
  tile.segment = int(second >> 16);
  tile.valid = begin + 2 * (int64_t(tile.total) + kStreamPadWords) <= matrix.stream_bytes &&
               tile.segment < matrix.segments;
  if (tile.valid) place_tile(matrix, tile_row, tile);
  return tile;
}

CLLM_DEVICE GlobalWords global_words(const RansTile& tile, uint32_t at) {
  return {tile.words, at, tile.total + kStreamPadWords - 1};
}

// Whether a warp's buffer holds a tile's words, and the word that the last lane fetches ahead.
CLLM_DEVICE bool fits_buffer(const RansTile& tile, const BlockLayout& layout) {
  return 2 * (uint64_t(tile.total) + kStreamPadWords) <= uint64_t(layout.warp_bytes);
}

// Copies a tile's words to the warp's buffer, and waits for them.
CLLM_DEVICE void stage_words(const RansTile& tile, SharedAddress buffer) {
  const uint32_t bytes = (2 * tile.total + 15) / 16 * 16;
  for (uint32_t i = 16 * (threadIdx.x & 31); i < bytes; i += 16 * kLanes)
    copy_async16(buffer + i, tile.words + i);
  wait_for_copies();
  __syncwarp();
}

}  // namespace codecllm::cuda
