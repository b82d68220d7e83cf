#include "plan.h"

#include <algorithm>
#include <cmath>

namespace codecllm::cuda {
namespace {

int round16(int64_t bytes) { return int((bytes + 15) / 16 * 16); }

// What a corrupt lane can read beyond its warp's buffer: two words of state, the word ahead, and 8
// words per group.
int reserve_bytes(int tile_cols) { return round16(2 * (3 + 8 * int64_t(tile_cols / kGroupCols))); }

// Buffer of one warp: a full tile of average size, and what tiles differ. A larger tile is read
// from global memory, so this is a matter of speed only.
int words_buffer(const CodedView& m) {
  const int64_t padded = ceil_div(m.cols, kGroupCols) * kGroupCols;
  const double average = double(m.stream_bytes) * m.tile_cols / (double(m.tile_rows) * padded);
  return round16(int64_t(average * 1.08) + 256);
}

constexpr int64_t kMaxGridY = 65535;       // of any GPU
constexpr int64_t kSystemBytes = 1 << 10;  // of shared memory, taken from every block
constexpr int64_t kStaticBytes = 1 << 10;  // more than kernels declare themselves

// Dynamic shared memory of a block that has a processor to itself.
int64_t shared_memory(const Device& d) {
  return std::min<int64_t>(d.shared_per_block, d.shared_per_processor - kSystemBytes) -
         kStaticBytes;
}

constexpr int kMostCopies = 16;

}  // namespace

bool has_mma(int format, Dtype dtype, int predictor, int arch) {
  if (arch < 80 || predictor != 0 || dtype == Dtype::f32) return false;
  if (format == Bf16::fmt.id) return dtype == Dtype::bf16;
  if (format == Fp16::fmt.id) return dtype == Dtype::f16;
  return format != Fp32::fmt.id;
}

namespace {

const WeightFormat* format_of(int id) {
  const WeightFormat* found = nullptr;
  with_format(id, [&](auto f) { found = &decltype(f)::fmt; });
  return found;
}

// What a cut costs, in clocks per weight of a processor. Counted in shared-memory wavefronts, the
// limit that depends on it: 3.3 per pair of weights besides the slot lookup's, which are simulated
// (tools/wavefronts.py). The busiest block decides when all is done. Partial sums go to the
// second-level cache and come back, at about 20 bytes per clock.
double cost(const CodedView& v, int copies, int64_t chunks, int64_t m, int processors) {
  const double lookup = copies >= 16 ? 2.0 : copies >= 8 ? 2.95 : copies >= 4 ? 3.3 : 3.5;
  const int64_t blocks = std::min(v.tile_rows, std::max<int64_t>(1, processors / chunks));
  const int64_t most = ceil_div(v.tile_rows, blocks) * ceil_div(v.col_tiles, chunks);
  const double busiest = double(most) * processors / (double(v.tile_rows) * double(v.col_tiles));
  const double partial = chunks > 1 ? 8.0 * double(chunks * m) / double(v.cols) / 20 : 0;
  return (3.3 + lookup) / 64 * busiest + partial;
}

// A block for linear_mma: one for each processor, as large as it can be.
struct Cut {
  int64_t limit;       // of shared memory, bytes
  int64_t col_tiles;   // of the matrix
  int64_t x_bytes;     // of one column tile
  int64_t sums_bytes;  // of one tile
  BlockLayout block;
  int64_t columns = 0;

  int64_t rows_of_a_round() const { return ceil_div(block.warps, columns); }
  bool fits(int64_t rows) {
    const int64_t extra = columns * (x_bytes + rows * sums_bytes);
    const int64_t bytes = int64_t(block.table_bytes()) + extra +
                          int64_t(block.warps) * block.buffer_bytes + block.reserve_bytes;
    if (bytes > limit) return false;
    block.extra_bytes = int(extra);
    return true;
  }
  // The most column tiles whose x fits beside a round's sums; false if not even one does.
  bool widest() {
    for (columns = std::min(col_tiles, limit / x_bytes); columns > 0; --columns)
      if (fits(rows_of_a_round())) return true;
    return false;
  }
};

}  // namespace

LinearPlan plan_linear(const CodedView& v, int64_t m, Dtype dtype, const Device& device) {
  LinearPlan plan = {};
  if (m > kMaxFusedRows) return plan.path = Path::gemm, plan;
  plan.path = Path::fma;
  plan.chunks = 1;
  plan.grid = std::min<int64_t>(v.tile_rows, 1 << 20);
  if (!has_mma(v.format, dtype, v.predictor, device.arch)) return plan;

  while (1 << plan.log2_n < m) ++plan.log2_n;
  const int64_t n = 1 << plan.log2_n;
  Cut cut = {shared_memory(device),
             v.col_tiles,
             (v.tile_cols / kGroupCols + 1) / 2 * 64 * n,
             4 * kTileRows * n,
             {}};
  cut.block.scale_bits = v.scale_bits;
  cut.block.buffer_bytes = words_buffer(v);
  cut.block.reserve_bytes = reserve_bytes(v.tile_cols);
  // No more warps than a processor has tiles for.
  const int64_t tiles = ceil_div(v.tile_rows * v.col_tiles, device.processors);
  cut.block.warps = int(std::min<int64_t>(tiles, max_warps(*format_of(v.format), n)));
  cut.block.copies = 1;
  while (!cut.widest())
    if (--cut.block.warps == 0) return plan;

  // Copies of the table against room for x, which means fewer chunks.
  Cut best = cut;
  double least = INFINITY;
  for (int copies = 1; copies <= kMostCopies; copies *= 2) {
    cut.block.copies = copies;
    if (!cut.widest()) break;
    for (int64_t chunks = 0; cut.columns > 0; --cut.columns) {
      if (ceil_div(v.col_tiles, cut.columns) == chunks) continue;
      chunks = ceil_div(v.col_tiles, cut.columns);
      if (chunks > kMaxGridY) break;
      if (const double c = cost(v, copies, chunks, m, device.processors); c <= least)
        least = c, best = cut;
    }
  }
  if (least == INFINITY) return plan;
  const int64_t chunks = ceil_div(v.col_tiles, best.columns);
  plan.path = Path::mma;
  plan.chunks = int(chunks);
  best.columns = ceil_div(v.col_tiles, chunks);
  plan.grid = std::min(v.tile_rows, std::max<int64_t>(1, device.processors / chunks));
  // Room for the sums of more rows means fewer waits.
  const int64_t share = ceil_div(v.tile_rows, plan.grid);
  int64_t rows = std::min(share, best.rows_of_a_round());
  while (rows < share && best.fits(rows + 1)) ++rows;
  best.fits(rows);
  plan.tile_rows = int(ceil_div(share, ceil_div(share, rows)));
  plan.tile_columns = int(best.columns);
  plan.x_bytes = int(best.columns * best.x_bytes);
  plan.block = best.block;
  return plan;
}

DecodePlan plan_decode(const CodedView& v, const Device& device) {
  DecodePlan plan = {};
  const int64_t tiles = v.tile_rows * v.col_tiles, limit = shared_memory(device);
  BlockLayout& b = plan.block;
  b.scale_bits = v.scale_bits;
  b.extra_bytes = 0;
  b.buffer_bytes = std::min(words_buffer(v), 16 << 10);
  b.reserve_bytes = reserve_bytes(v.tile_cols);
  b.copies = 1;
  b.warps = int(std::min<int64_t>(ceil_div(tiles, device.processors), kMaxWarps));
  while (b.warps > 1 && b.bytes() > limit) --b.warps;
  for (int copies = 2; copies <= kMostCopies; copies *= 2) {
    BlockLayout more = b;
    more.copies = copies;
    if (more.bytes() <= limit) b = more;
  }
  plan.grid = std::min<int64_t>(ceil_div(tiles, b.warps), device.processors);
  return plan;
}

}  // namespace codecllm::cuda
