// From a table of segments to rows of the matrix, and the shares of work that blocks take. Whatever
// a table says, nothing outside of the matrix is named.
#pragma once
#include "args.h"
#include "device.cuh"

namespace codecllm::cuda {

// The last segment whose `field` (kFirstRow, kFirstTileRow) is at most `value`.
CLLM_DEVICE int64_t segment_of(const CodedView& matrix, SegmentField field, int64_t value) {
  int64_t low = 0, high = matrix.segments;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (__ldg(matrix.segment(middle) + field) <= value)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Where tile rows from `base` on belong to another segment, at most `end`. More than `base`
// whatever the table says: a kernel must come to an end.
CLLM_DEVICE int64_t end_of_segment(const CodedView& matrix, int64_t segment, int64_t base,
                                   int64_t end) {
  if (segment + 1 >= matrix.segments) return end;
  const int64_t next = __ldg(matrix.segment(segment + 1) + kFirstTileRow);
  return next <= base ? base + 1 : next < end ? next : end;
}

// Rows of the matrix in a tile row, from the table alone (a corrupt index must not move them).
CLLM_DEVICE int rows_of(const CodedView& matrix, int64_t tile_row, int64_t& out_row) {
  const uint32_t* header = matrix.segment(segment_of(matrix, kFirstTileRow, tile_row));
  const int64_t local = (tile_row - __ldg(header + kFirstTileRow)) * kTileRows;
  const int64_t left = int64_t(__ldg(header + kRows)) - local;
  out_row = __ldg(header + kFirstRow) + local;
  const int64_t inside = matrix.rows - out_row;  // whatever the table says
  int64_t rows = left < inside ? left : inside;
  rows = rows < kTileRows ? rows : kTileRows;
  return local < 0 || rows < 0 ? 0 : int(rows);
}

// Cuts a block's share of some units (tile rows, or tiles of `per_row` to a tile row) where the
// segment changes, or where `most` units are together: what a block does with one table and one
// barrier.
struct Cuts {
  const CodedView& matrix;
  int64_t per_row, most, end;  // units
  int64_t first, last;         // of this cut, `last` not included
  int64_t segment, before = -1;

  CLLM_DEVICE Cuts(const CodedView& matrix, int64_t units, int64_t per_row, int64_t most)
      : matrix(matrix),
        per_row(per_row),
        most(most),
        end(units * (blockIdx.x + 1) / gridDim.x),
        first(units * blockIdx.x / gridDim.x) {
    find();
  }
  CLLM_DEVICE bool more() const { return first < end; }
  CLLM_DEVICE bool new_segment() const { return segment != before; }
  CLLM_DEVICE void next() {
    before = segment;
    first = last;
    find();
  }

 private:
  CLLM_DEVICE void find() {
    const int64_t row = first / per_row;
    const int64_t limit = end - first < most ? end : first + most;
    segment = segment_of(matrix, kFirstTileRow, row);
    last = end_of_segment(matrix, segment, row, ceil_div(limit, per_row)) * per_row;
    last = last < limit ? last : limit;
  }
};

// Where corruption is reported: the smallest number of a corrupt tile, if somebody asks.
CLLM_DEVICE void report_corrupt(uint64_t* status, int64_t tile) {
  if (status && (threadIdx.x & 31) == 0)
    atomicMin((unsigned long long*)status, (unsigned long long)tile);
}

}  // namespace codecllm::cuda
