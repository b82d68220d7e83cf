#include "plan.h"

#include <algorithm>

namespace codecllm::cuda {
namespace {

int round16(int64_t bytes) { return int((bytes + 15) / 16 * 16); }

// What a corrupt lane can read beyond its warp's buffer: two words of state, the word ahead, and 8
// words per group.
int reserve_bytes(int tile_cols) { return round16(2 * (3 + 8 * int64_t(tile_cols / kGroupCols))); }

// Buffer of one warp: a full tile of average size, and what tiles differ. A larger tile is read
// from global memory, so this is a matter of speed only.
int64_t words_buffer(const CodedView& m) {
  const int64_t padded = ceil_div(m.cols, kGroupCols) * kGroupCols;
  const double average = double(m.stream_bytes) * m.tile_cols / (double(m.tile_rows) * padded);
  return round16(int64_t(average * 1.08) + 256);
}

constexpr int64_t kMaxGridY = 65535;       // of any GPU
constexpr int64_t kSystemBytes = 1 << 10;  // of shared memory, taken from every block
constexpr int64_t kStaticBytes = 1 << 10;  // more than kernels declare themselves

// Dynamic shared memory of one block when `blocks` share a processor.
int64_t share(const Device& d, int64_t blocks) {
  const int64_t equal = d.shared_per_processor / std::max<int64_t>(1, blocks) - kSystemBytes;
  return std::min<int64_t>(d.shared_per_block, equal) - kStaticBytes;
}

// As many copies of the table as fit: fewer bank conflicts (docs/kernels.md). Up to 64 KB, which a
// block fills in a fraction of a microsecond.
void choose_copies(BlockLayout& b, int64_t limit) {
  constexpr int64_t kMostBytes = 64 << 10;
  b.copies = 16;
  while (b.copies > 1 && (b.bytes() > limit || b.table_bytes() > kMostBytes)) b.copies /= 2;
}

// Blocks of this size that a processor holds at once.
int64_t resident(const BlockLayout& b, const Device& d) {
  const int64_t by_memory = d.shared_per_processor / (b.bytes() + kSystemBytes + kStaticBytes);
  return std::max<int64_t>(1, std::min<int64_t>(by_memory, kWarpsPerProcessor / b.warps));
}

}  // namespace

bool has_mma(int format, Dtype dtype, int predictor, int arch) {
  if (arch < 80 || predictor != 0 || dtype == Dtype::f32) return false;
  if (format == Bf16::fmt.id) return dtype == Dtype::bf16;
  if (format == Fp16::fmt.id) return dtype == Dtype::f16;
  return format != Fp32::fmt.id;
}

LinearPlan plan_linear(const CodedView& v, int64_t m, Dtype dtype, const Device& device) {
  LinearPlan plan = {};
  if (m > kMaxFusedRows) return plan.path = Path::gemm, plan;
  plan.path = Path::fma;
  plan.chunks = 1;
  plan.grid = std::min<int64_t>(v.tile_rows, 1 << 20);
  if (!has_mma(v.format, dtype, v.predictor, device.arch)) return plan;

  while (1 << plan.log2_n < m) ++plan.log2_n;
  const int64_t n = 1 << plan.log2_n;
  const int64_t x_bytes = (v.tile_cols / kGroupCols + 1) / 2 * 64 * n;  // of one column tile
  const int64_t half = share(device, 2);
  BlockLayout& b = plan.block;
  b.scale_bits = v.scale_bits;
  b.copies = 1;
  b.buffer_bytes = round16(std::max<int64_t>(words_buffer(v), 64 * std::max<int64_t>(n, 8)));
  b.reserve_bytes = reserve_bytes(v.tile_cols);

  const auto fits = [&](int64_t columns, int64_t warps, int64_t limit) {
    b.extra_bytes = round16(std::min<int64_t>(columns * x_bytes, 1 << 24));
    b.warps = int(warps);
    const int64_t bytes = int64_t(b.table_bytes()) + b.extra_bytes +
                          warps * int64_t(b.buffer_bytes) + b.reserve_bytes;
    return bytes <= limit;
  };
  // All column tiles in a block if they fit: their sums meet in shared memory, not in a workspace.
  int64_t columns = std::min<int64_t>(v.col_tiles, kMaxWarps);
  const int64_t x_limit = std::max<int64_t>(x_bytes, half / 3);
  while (columns > 1 && columns * x_bytes > x_limit) --columns;
  while (columns > 1 && !fits(columns, columns, half)) --columns;
  int64_t limit = half;
  if (!fits(columns, columns, limit)) limit = share(device, 1);
  if (!fits(columns, columns, limit)) return plan;  // path fma
  if (ceil_div(v.col_tiles, columns) > kMaxGridY) return plan;
  plan.path = Path::mma;
  plan.chunks = int(ceil_div(v.col_tiles, columns));
  columns = ceil_div(v.col_tiles, plan.chunks);
  // Tile rows share x and the table, but every processor should have a block first.
  int64_t rows = std::max<int64_t>(1, kMaxWarps / columns);
  while (rows > 1 && (ceil_div(v.tile_rows, rows) * plan.chunks < device.processors ||
                      !fits(columns, rows * columns, limit)))
    --rows;
  fits(columns, rows * columns, limit);
  plan.tile_rows = int(rows);
  plan.tile_columns = int(columns);
  // With several blocks in a processor, room for the next one matters more than copies.
  const int64_t wanted = ceil_div(v.tile_rows, rows) * plan.chunks;
  const int64_t together =
      std::min<int64_t>(ceil_div(wanted, device.processors), kWarpsPerProcessor / b.warps);
  choose_copies(b, share(device, together));
  // Blocks stay for several tile rows, so that x and the table are read once.
  const int64_t room = std::max<int64_t>(1, device.processors * resident(b, device) / plan.chunks);
  plan.grid = std::min<int64_t>(ceil_div(v.tile_rows, rows), room);
  return plan;
}

DecodePlan plan_decode(const CodedView& v, const Device& device) {
  DecodePlan plan = {};
  BlockLayout& b = plan.block;
  b.scale_bits = v.scale_bits;
  b.copies = 1;
  b.extra_bytes = 0;
  b.buffer_bytes = int(std::min<int64_t>(words_buffer(v), 16 << 10));
  b.reserve_bytes = reserve_bytes(v.tile_cols);
  const int64_t limit = share(device, 2);
  b.warps = kMaxWarps;
  while (b.warps > 1 && b.bytes() > limit) b.warps /= 2;
  choose_copies(b, limit);
  plan.grid = std::min<int64_t>(ceil_div(v.tile_rows * v.col_tiles, b.warps),
                                device.processors * resident(b, device));
  return plan;
}

}  // namespace codecllm::cuda
