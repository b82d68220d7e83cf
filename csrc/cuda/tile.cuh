// From the tile index to a tile that a warp can decode. Whatever the bytes say, nothing outside the
// tensors is read: sizes are checked on the host (csrc/torch), offsets here.
#pragma once
#include "../core/coded_view.h"
#include "lane.cuh"
#include "linear.h"
#include "raw.cuh"

namespace codecllm::cuda {

struct DeviceTile {
  const uint8_t* words;
  uint32_t start, end, total;  // this lane's words, and all of the tile's
  const uint8_t* raw;
  int segment, groups, rows;  // rows inside the matrix, 1..16
  int64_t out_row;
  bool valid;
  bool last;  // less than kLoadAhead bytes of raw plane behind it
};

// All lanes of a warp must call it. `lane` says whose words are wanted.
CLLM_DEVICE DeviceTile locate_tile(const CodedView& m, int64_t tile_row, int64_t col_tile,
                                   int lane) {
  DeviceTile tile;
  const int64_t number = tile_row * m.col_tiles + col_tile;
  const uint32_t* record = m.index + number * (2 + m.len_bits);
  const uint32_t first = __ldg(record), second = __ldg(record + 1);
  tile.groups = m.groups(col_tile);
  const int64_t raw_at = tile_row * m.raw_row_bytes + col_tile * m.raw_tile_bytes;
  tile.raw = m.raw + raw_at;
  tile.last = m.tile_rows * m.raw_row_bytes - raw_at < m.raw_tile_bytes + kLoadAhead;

  const int me = threadIdx.x & 31, bit = me * m.len_bits, word = bit >> 5;
  const uint32_t low = __ldg(record + 2 + word);
  const uint32_t high = word + 1 < m.len_bits ? __ldg(record + 3 + word) : 0;
  const uint64_t both = (uint64_t(high) << 32 | low) >> (bit & 31);
  const uint32_t length = (second & 0xffff) + (uint32_t(both) & ((1u << m.len_bits) - 1));
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
  tile.words = m.stream + begin;
  tile.segment = int(second >> 16);
  tile.valid = begin + 2 * (int64_t(tile.total) + kStreamPadWords) <= m.stream_bytes &&
               tile.segment < m.segments;
  if (tile.valid) {
    const uint32_t* header = m.segment(tile.segment);
    const int64_t local = (tile_row - __ldg(header + kFirstTileRow)) * kTileRows;
    const int64_t left = int64_t(__ldg(header + kRows)) - local;
    tile.rows = int(left < kTileRows ? left : kTileRows);
    tile.out_row = __ldg(header + kFirstRow) + local;
    tile.valid = local >= 0 && left > 0 && tile.out_row + tile.rows <= m.rows;
  }
  return tile;
}

// The last segment whose `field` (kFirstRow, kFirstTileRow) is at most `value`.
CLLM_DEVICE int64_t segment_of(const CodedView& m, SegmentField field, int64_t value) {
  int64_t low = 0, high = m.segments;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (__ldg(m.segment(middle) + field) <= value)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Where tile rows from `base` on belong to another segment, at most `end`. More than `base`
// whatever the table says: a kernel must come to an end.
CLLM_DEVICE int64_t end_of_segment(const CodedView& m, int64_t segment, int64_t base, int64_t end) {
  if (segment + 1 >= m.segments) return end;
  const int64_t next = __ldg(m.segment(segment + 1) + kFirstTileRow);
  return next <= base ? base + 1 : next < end ? next : end;
}

// Rows of the matrix in a tile row, from the table alone (a corrupt index must not move them).
CLLM_DEVICE int rows_of(const CodedView& m, int64_t tile_row, int64_t& out_row) {
  const uint32_t* header = m.segment(segment_of(m, kFirstTileRow, tile_row));
  const int64_t local = (tile_row - __ldg(header + kFirstTileRow)) * kTileRows;
  const int64_t left = int64_t(__ldg(header + kRows)) - local;
  out_row = __ldg(header + kFirstRow) + local;
  const int64_t inside = m.rows - out_row;  // whatever the table says
  int64_t rows = left < inside ? left : inside;
  rows = rows < kTileRows ? rows : kTileRows;
  return local < 0 || rows < 0 ? 0 : int(rows);
}

CLLM_DEVICE GlobalWords global_words(const DeviceTile& tile, uint32_t at) {
  return {tile.words, at, tile.total + kStreamPadWords - 1};
}

CLLM_DEVICE GlobalSlots global_slots(const CodedView& m, int segment) {
  const uint32_t* slots = m.segment(segment) + kTableHeader;
  return {slots, (1u << m.scale_bits) - 1, m.scale_bits, first_escape_slot(slots, m.scale_bits)};
}

// Decodes a tile and calls f(group, group % 2, pairs, raw, n) per group: the halves of the four
// pairs without `flip`; pair n + j of `raw` for the low halves. False if the tile does not end as
// it must.
template <class F, bool Left, class Slots, class Words, class Each>
CLLM_DEVICE bool decode_tile(const DeviceTile& tile, const Slots& slots, const Segment<F>& segment,
                             Words begin, Words end, int raw_lane, Each&& f) {
  Lane<Words> lane(begin);
  const uint32_t base = own(segment.base);
  uint32_t previous[2] = {segment.seed, segment.seed};
  int group = 0;
  for_each_group<F, Words::kPipelined>(RawTile<F>(tile.raw, raw_lane, tile.groups), tile.last,
                                       [&](const RawBits<F>& raw, int n, int parity) {
                                         uint32_t pairs[kPairsPerGroup];
                                         decode_group<F>(lane, slots, base, pairs);
                                         if constexpr (Left) undo_left<F>(pairs, previous);
#pragma unroll
                                         for (int j = 0; j < kPairsPerGroup; ++j)
                                           pairs[j] = raw.merge(n + j, pairs[j]);
                                         f(group++, parity, pairs, raw, n);
                                       });
  return lane.ended(end);
}

// ---- what a block shares ------------------------------------------------------------------------

// All threads of the block.
CLLM_DEVICE void fill_table(const CodedView& m, int segment, const BlockLayout& layout,
                            uint32_t* shared) {
  const uint32_t* slots = m.segment(segment) + kTableHeader;
  const int quads = layout.copies / 4;
  if (quads == 0) {
    for (int i = threadIdx.x; i < layout.copies << layout.scale_bits; i += blockDim.x)
      shared[i] = device_entry(__ldg(slots + i / layout.copies));
    return;
  }
  for (int i = threadIdx.x; i < 1 << layout.scale_bits; i += blockDim.x) {
    const uint32_t e = device_entry(__ldg(slots + i));
    uint4* to = (uint4*)(shared + i * layout.copies);
    for (int q = 0; q < quads; ++q) to[q] = make_uint4(e, e, e, e);
  }
}

CLLM_DEVICE SharedSlots shared_slots(const CodedView& m, int segment, const BlockLayout& layout,
                                     const uint32_t* shared) {
  const uint32_t lane = threadIdx.x & 31;
  const uint32_t* slots = m.segment(segment) + kTableHeader;
  return {shared_address(shared) + lane % layout.copies * 4, uint32_t(4 * layout.copies),
          (1u << layout.scale_bits) - 1, layout.scale_bits,
          first_escape_slot(slots, layout.scale_bits)};
}

// With room for the word that the last lane fetches ahead: another warp's buffer may be written.
CLLM_DEVICE bool fits_buffer(const DeviceTile& tile, const BlockLayout& layout) {
  return 2 * (uint64_t(tile.total) + kStreamPadWords) <= uint64_t(layout.buffer_bytes);
}

// The warp's copy of its tile's words. Begin early, wait late.
CLLM_DEVICE void stage_words(const DeviceTile& tile, SharedAddress buffer) {
  const uint32_t bytes = (2 * tile.total + 15) / 16 * 16;
  for (uint32_t i = 16 * (threadIdx.x & 31); i < bytes; i += 16 * kLanes)
    copy_async16(buffer + i, tile.words + i);
}

// Runs work(tile, begin, end) on a tile, its words in the warp's buffer, or in global memory where
// they are more than planned for. False, in all lanes, if the tile is corrupt or not of `segment`.
template <class Work>
CLLM_DEVICE bool with_tile(const CodedView& m, const BlockLayout& layout, SharedAddress buffer,
                           int64_t tile_row, int64_t col_tile, int64_t segment, Work&& work) {
  const DeviceTile tile = locate_tile(m, tile_row, col_tile, threadIdx.x & 31);
  bool good = tile.valid && tile.segment == segment;
  if (good) {
    if (fits_buffer(tile, layout)) {
      stage_words(tile, buffer);
      wait_for_copies();
      __syncwarp();
      good = work(tile, SharedWords{buffer + 2 * tile.start}, SharedWords{buffer + 2 * tile.end});
    } else {
      good = work(tile, global_words(tile, tile.start), global_words(tile, tile.end));
    }
  }
  good = __all_sync(~0u, good);
  __syncwarp();  // the next tile's words take this one's place
  return good;
}

// Where corruption is reported: the smallest number of a corrupt tile, if somebody asks.
CLLM_DEVICE void report_corrupt(uint64_t* status, int64_t tile) {
  if (status && (threadIdx.x & 31) == 0)
    atomicMin((unsigned long long*)status, (unsigned long long)tile);
}

}  // namespace codecllm::cuda
