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
  constexpr double kMost = 64 << 10;  // of any tile worth staging
  const int64_t padded = ceil_div(m.cols, kGroupCols) * kGroupCols;
  const double average = double(m.stream_bytes) * m.tile_cols / (double(m.tile_rows) * padded);
  return round16(int64_t(std::min(average * 1.08, kMost)) + 256);
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

// How a linear_mma launch is cut: one block for each processor, as large as it can be.
struct Cut {
  // The launch.
  int64_t m, limit;              // rows of x; shared memory of a block, bytes
  int64_t tile_rows, col_tiles;  // of the matrix
  int64_t cols, processors;
  int64_t x_bytes, sums_bytes;  // of one column tile; of one tile
  // The choice.
  BlockLayout block;
  int64_t chunks = 1, columns = 0;  // of column tiles, in a chunk
  int64_t rows = 1;                 // tile rows whose sums have room

  int64_t blocks() const { return std::min(tile_rows, std::max<int64_t>(1, processors / chunks)); }
  int64_t share() const { return ceil_div(tile_rows, blocks()); }
  bool fits() {
    const int64_t extra = columns * (x_bytes + rows * sums_bytes);
    const int64_t bytes = int64_t(block.table_bytes()) + extra +
                          int64_t(block.warps) * block.buffer_bytes + block.reserve_bytes;
    if (bytes > limit) return false;
    block.extra_bytes = int(extra);
    return true;
  }
  // Rounds in which the warps take the tiles of a share, `rows` tile rows at a time.
  int64_t rounds() const {
    const int64_t whole = share() / rows, rest = share() % rows;
    return whole * ceil_div(rows * columns, block.warps) + ceil_div(rest * columns, block.warps);
  }
  // As many warps as have work and room; false if not even one has.
  bool choose_warps(int most) {
    for (block.warps = int(std::min<int64_t>(most, share() * columns)); block.warps > 0;
         --block.warps) {
      rows = std::min(share(), ceil_div(block.warps, columns));
      if (fits()) return true;
    }
    return false;
  }
  // The fewest rounds; among equals the most rows, which means the fewest barriers.
  void choose_rows() {
    Cut best = *this;
    const int64_t most = std::min(share(), rows + 4 * block.warps);
    for (++rows; rows <= most && fits(); ++rows)
      if (rounds() <= best.rounds()) best = *this;
    *this = best;
  }
  // Clocks per weight of a processor. Counted in shared-memory wavefronts, the limit that depends
  // on the cut: 3.3 per pair of weights besides the slot lookup's, which are simulated
  // (tools/wavefronts.py). Fewer than about 15 warps wait for latencies. Partial sums go to the
  // second-level cache and come back, at about 20 bytes per clock.
  double cost() const {
    const int c = block.copies;
    const double lookup = c >= 16 ? 2.0 : c >= 8 ? 2.95 : c >= 4 ? 3.3 : 3.5;
    const int64_t waves = ceil_div(blocks() * chunks, processors);
    const double tiles = double(waves * rounds()) * std::max(15, block.warps);
    const double ideal = double(tile_rows) * double(col_tiles) / double(processors);
    const double partial = chunks > 1 ? 8.0 * double(chunks * m) / double(cols) / 20 : 0;
    return (3.3 + lookup) / 64 * tiles / ideal + partial;
  }
};

constexpr int64_t kMoreChunks = 8;  // times the fewest are looked at: every call makes a plan

}  // namespace

LinearPlan plan_linear(const CodedView& v, int64_t m, Dtype dtype, const Device& device) {
  LinearPlan plan = {};
  plan.most_shared = device.shared_per_block;
  if (m > kMaxFusedRows) return plan.path = Path::gemm, plan;
  plan.path = Path::fma;
  plan.chunks = 1;
  plan.grid = std::min<int64_t>(v.tile_rows, 1 << 20);
  if (!has_mma(v.format, dtype, v.predictor, device.arch)) return plan;

  while (1 << plan.log2_n < m) ++plan.log2_n;
  const int64_t n = 1 << plan.log2_n;
  Cut cut = {};
  cut.m = m;
  cut.limit = shared_memory(device);
  cut.tile_rows = v.tile_rows, cut.col_tiles = v.col_tiles;
  cut.cols = v.cols, cut.processors = device.processors;
  cut.x_bytes = (v.tile_cols / kGroupCols + 1) / 2 * 64 * n;
  cut.sums_bytes = 4 * kTileRows * n;
  cut.block.scale_bits = v.scale_bits;
  cut.block.buffer_bytes = words_buffer(v);
  cut.block.reserve_bytes = reserve_bytes(v.tile_cols);
  const int most_warps = max_warps(*format_of(v.format), n);
  const int64_t widest = std::min(v.col_tiles, cut.limit / cut.x_bytes);
  if (widest == 0) return plan;
  const int64_t fewest = ceil_div(v.col_tiles, widest);
  // Copies of the table against room for x, which means fewer chunks.
  Cut best = {};
  double least = INFINITY;
  for (int copies = 1; copies <= kMostCopies; copies *= 2) {
    cut.block.copies = copies;
    cut.chunks = 0;
    for (int64_t columns = widest; columns > 0; --columns) {
      if (ceil_div(v.col_tiles, columns) == cut.chunks) continue;
      cut.chunks = ceil_div(v.col_tiles, columns);
      cut.columns = ceil_div(v.col_tiles, cut.chunks);
      if (cut.chunks > std::min(kMoreChunks * fewest, kMaxGridY)) break;
      if (!cut.choose_warps(most_warps)) continue;
      cut.choose_rows();
      if (const double c = cut.cost(); c <= least) least = c, best = cut;
    }
  }
  if (least == INFINITY) return plan;
  plan.path = Path::mma;
  plan.chunks = int(best.chunks);
  plan.grid = best.blocks();
  plan.tile_rows = int(best.rows);
  plan.tile_columns = int(best.columns);
  plan.x_bytes = int(best.columns * best.x_bytes);
  plan.block = best.block;
  return plan;
}

DecodePlan plan_decode(const CodedView& v, const Device& device) {
  DecodePlan plan = {};
  plan.most_shared = device.shared_per_block;
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
