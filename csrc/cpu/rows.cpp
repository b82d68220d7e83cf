// Single rows: where they are, and the four lanes of each of their tiles, decoded one by one.
#include "kernels.h"
#include "sources.h"
#include "words.h"

namespace codecllm {

int64_t first_row(const CodedView& view, int64_t tile_row) {
  for (int64_t s = view.segments - 1; s >= 0; --s) {
    const uint32_t* header = view.segment(s);
    if (header[kFirstTileRow] > tile_row || header[kRows] == 0) continue;
    const int64_t row = (tile_row - header[kFirstTileRow]) * kTileRows;
    return header[kFirstRow] + (row < header[kRows] ? row : int64_t(header[kRows]));
  }
  return 0;
}

static RowPlace find_row(const CodedView& view, int64_t row) {
  int64_t segment = 0;
  while (segment + 1 < view.segments && view.segment(segment + 1)[kFirstRow] <= row) ++segment;
  const uint32_t* header = view.segment(segment);
  const int64_t in_segment = row - header[kFirstRow];
  return {segment, header[kFirstTileRow] + in_segment / kTileRows, int(in_segment % kTileRows)};
}

template <class F>
static Status decode_row(const CodedView& view, int64_t row, uint8_t* out) {
  const RowPlace at = find_row(view, row);
  RowPairs decoded;
  for (int64_t col_tile = 0; col_tile < view.col_tiles; ++col_tile) {
    TilePlace tile;
    Status status = decode_row_of_tile<F>(view, at, col_tile, tile, decoded);
    if (!status) return status;
    write_words<F>(decoded.pairs, decoded.low, 4, tile.cols,
                   out + tile.first_col * F::fmt.word_bytes());
  }
  return {};
}

Status decode_rows(const CodedView& view, const int64_t* ids, int64_t begin, int64_t end,
                   uint8_t* out) {
  Status status;
  with_format(view.format, [&](auto f) {
    using F = decltype(f);
    for (int64_t i = begin; i < end && status; ++i)
      status = decode_row<F>(view, ids[i], out + i * view.cols * F::fmt.word_bytes());
  });
  return status;
}

}  // namespace codecllm
