// CPU implementations of the ops that make and check matrices of coding fixed, and of _crc32.
#include <atomic>
#include <tuple>
#include <vector>

#include "../cpu/crc32.h"
#include "../cpu/kernels.h"
#include "coded_args.h"
#include "parallel.h"

namespace codecllm {
namespace {

// The entries of all tile rows behind each other; counts become ends.
Tensor join_entries(const std::vector<FixedEntries>& rows, int32_t* ends, int64_t col_tiles,
                    const Tensor& like, const char* op) {
  int64_t total = 0;
  for (const FixedEntries& row : rows) {
    CLLM_CHECK(!row.out_of_memory(), "codecllm::", op, ": out of memory");
    total += row.size();
  }
  CLLM_CHECK(total <= INT32_MAX, "codecllm::", op, ": ", total,
             " weights outside the windows, too many for a list");
  Tensor listed = make_empty(like, {kListedBytes * total}, ScalarType::Byte);
  uint8_t* to = listed.mutable_data_ptr<uint8_t>();
  int32_t end = 0;
  for (const FixedEntries& row : rows) {
    const int64_t bytes = kListedBytes * row.size();
    if (bytes) memcpy(to, row.data(), size_t(bytes));
    to += bytes;
    for (int64_t t = 0; t < col_tiles; ++t, ++ends) *ends = end += *ends;
  }
  return listed;
}

std::tuple<Tensor, Tensor, Tensor> to_fixed(const Tensor& stream, const Tensor& raw,
                                            const Tensor& index, const Tensor& table, int64_t rows,
                                            int64_t cols, int64_t layout_word, const Tensor& bases,
                                            int64_t tile_cols) {
  const char* op = "_to_fixed";
  const Operand coded(stream, raw, index, table, rows, cols, layout_word);
  CodedView view = coded_view(coded, op);
  check_target(tile_cols, bases, view, op);
  if (coded.layout.stored()) view.tile_rows = ceil_div(rows, kTileRows);
  const ColumnTiles across = {cols, int(tile_cols)};
  const int64_t tiles = view.tile_rows * across.count();
  const int64_t row_bytes = across.fixed_row_bytes();
  Tensor plane = make_empty(stream, {view.tile_rows * row_bytes}, ScalarType::Byte);
  Tensor ends = make_empty(stream, {tiles, 1}, ScalarType::Int);
  const bool streams =
      plane.numel() >= kStreamFrom && intptr_t(plane.mutable_data_ptr<uint8_t>()) % 64 == 0;
  std::vector<FixedEntries> entries(static_cast<size_t>(cols ? view.tile_rows : 0));
  const FixedTarget target = {
      bases.const_data_ptr<int32_t>(),  int(tile_cols), plane.mutable_data_ptr<uint8_t>(),
      ends.mutable_data_ptr<int32_t>(), entries.data(), streams};
  const Kernels& k = kernels();
  if (tiles)
    check_status(parallel_tile_rows(0, view.tile_rows, k.to_fixed_scratch_bytes(view),
                                    [&](int64_t begin, int64_t end, uint8_t* scratch) {
                                      return k.to_fixed(view, begin, end, target, scratch);
                                    }),
                 op, view.coding);
  Tensor listed =
      join_entries(entries, ends.mutable_data_ptr<int32_t>(), across.count(), stream, op);
  return {plane, listed, ends};
}

int64_t check_fixed(const Tensor& stream, const Tensor& raw, const Tensor& index,
                    const Tensor& table, int64_t rows, int64_t cols, int64_t layout_word) {
  const char* op = "_check_fixed";
  const CodedView view =
      coded_view(Operand(stream, raw, index, table, rows, cols, layout_word), op);
  CLLM_CHECK(view.coding == Coding::fixed, "codecllm::", op, ": a matrix of another coding");
  const Kernels& k = kernels();
  const Status status = parallel_tile_rows(
      0, view.tile_rows, 0,
      [&](int64_t begin, int64_t end, uint8_t*) { return k.check_fixed(view, begin, end); });
  return 1 + status.tile;
}

// ---- checksums ----------------------------------------------------------------------------------

Crc32Way crc32_way() {
  const Kernels* k = &kernels();
  if (k == &kPortable) return Crc32Way::tables;
#ifndef CLLM_NO_X86
  if (k != &kAvx2 && crc32_supported(Crc32Way::vpclmul)) return Crc32Way::vpclmul;
#endif
  return crc32_supported(Crc32Way::pclmul) ? Crc32Way::pclmul : Crc32Way::tables;
}

int64_t crc32_op(const Tensor& bytes) {
  constexpr int64_t kLeast = 1 << 18;  // bytes that are worth a thread
  check_tensor(bytes, ScalarType::Byte, 1, "_crc32", "bytes", bytes);
  const int64_t n = bytes.numel();
  const uint8_t* at = bytes.const_data_ptr<uint8_t>();
  const Crc32Way way = crc32_way();
  const int64_t parts = std::min<int64_t>(n / kLeast, torch::stable::get_num_threads());
  if (parts < 2) return crc32(way, 0, at, size_t(n));
  std::vector<uint32_t> crcs(static_cast<size_t>(parts));
  const auto from = [&](int64_t part) { return n / parts * part + n % parts * part / parts; };
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      crcs[size_t(p)] = crc32(way, 0, at + from(p), size_t(from(p + 1) - from(p)));
  });
  uint32_t all = crcs[0];
  for (int64_t p = 1; p < parts; ++p)
    all = crc32_combine(all, crcs[size_t(p)], uint64_t(from(p + 1) - from(p)));
  return all;
}

}  // namespace
}  // namespace codecllm

STABLE_TORCH_LIBRARY_IMPL(codecllm, CPU, m) {
  m.impl("_to_fixed", TORCH_BOX(&codecllm::to_fixed));
  m.impl("_check_fixed", TORCH_BOX(&codecllm::check_fixed));
  m.impl("_crc32", TORCH_BOX(&codecllm::crc32_op));
}
