// The list of sources: one coding each.
#pragma once
#include "source_rans.h"

namespace codecllm {
namespace {

static_assert(kCodings == 3, "a coding without a source");

// Calls use(source) -> Status with the source of the matrix's coding and format.
template <class Use>
inline Status with_source(const CodedView& view, uint8_t* scratch, Use&& use) {
  Status status;
  if (view.coding != Coding::rans) return {Corruption::stream, 0};
  with_format(view.format, [&](auto f) {
    RansSource<decltype(f)> source(view, scratch);
    static_assert(Source<decltype(source)>);
    status = use(source);
  });
  return status;
}

inline int64_t source_scratch_bytes(const CodedView& view) { return rans_scratch_bytes(view); }

// Decodes a row of one tile, one lane after the other. Fills `place` first.
template <class F>
inline Status decode_row_of_tile(const CodedView& view, const RowPlace& at, int64_t col_tile,
                                 TilePlace& place, RowPairs& out) {
  return decode_rans_row<F>(view, at, col_tile, place, out);
}

}  // namespace
}  // namespace codecllm
