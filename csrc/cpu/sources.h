// The list of sources: one coding each.
#pragma once
#include "source_fixed.h"
#include "source_rans.h"

namespace codecllm {
namespace {

static_assert(kCodings == 3, "a coding without a source: rans and fixed have one, stored none");

// Calls use(source) -> Status with the source of the matrix's coding and format.
template <class Use>
inline Status with_source(const CodedView& view, uint8_t* scratch, Use&& use) {
  static_assert(Source<FixedSource>);
  if (view.coding == Coding::fixed) {
    FixedSource source(view, scratch);
    return use(source);
  }
  Status status;
  with_format(view.format, [&](auto f) {
    RansSource<decltype(f)> source(view, scratch);
    static_assert(Source<decltype(source)>);
    status = use(source);
  });
  return status;
}

inline int64_t source_scratch_bytes(const CodedView& view) {
  return view.coding == Coding::fixed ? 0 : rans_scratch_bytes(view);
}

// Decodes a row of one tile. Fills `place` first.
template <class F>
inline Status decode_row_of_tile(const CodedView& view, const RowPlace& at, int64_t col_tile,
                                 TilePlace& place, RowPairs& out) {
  if constexpr (std::is_same_v<F, FixedSource::Format>)
    if (view.coding == Coding::fixed) return decode_fixed_row(view, at, col_tile, place, out);
  return decode_rans_row<F>(view, at, col_tile, place, out);
}

}  // namespace
}  // namespace codecllm
