#include "plan.h"

#include <cmath>
#include <numeric>

#include "codings.h"
#include "cut.h"
#include "fixed/to_fixed.h"
#include "remembered.h"

namespace codecllm::cuda {
namespace {

constexpr int64_t kMaxGridY = 65535;       // of any GPU
constexpr int64_t kSystemBytes = 1 << 10;  // of shared memory, taken from every block
constexpr int64_t kStaticBytes = 1 << 10;  // more than kernels declare themselves
constexpr int64_t kMostLinearWarpBytes = 64 << 10, kMostDecodeWarpBytes = 16 << 10;
constexpr int64_t kMoreChunks = 8;  // times the fewest are looked at

// Dynamic shared memory of a block that has a processor to itself.
int64_t shared_memory(const Device& d) {
  return std::min<int64_t>(d.shared_per_block, d.shared_per_processor - kSystemBytes) -
         kStaticBytes;
}

SourceNeeds needs_of(const CodedView& matrix, int64_t most_warp_bytes) {
  SourceNeeds needs = {};
  with_coding(matrix,
              [&](auto coding) { needs = decltype(coding)::needs(matrix, most_warp_bytes); });
  return needs;
}

// linear_mma's kernel; null where there is none.
MmaKernel mma_kernel(const SourceKernels& kernels, int log2_rows, Dtype dtype, int arch) {
  if (arch < 80 || dtype == Dtype::f32) return {};
  return kernels.mma[dtype == Dtype::f16][log2_rows];
}

// Ways of the source against room for x, which means fewer chunks.
bool choose_cut(Cut cut, const SourceNeeds& needs, int max_warps, Cut& best) {
  const int64_t widest = std::min(cut.col_tiles, cut.limit / cut.x_bytes);
  if (widest == 0) return false;
  const int64_t fewest = ceil_div(cut.col_tiles, widest);
  const int64_t most = std::min(kMoreChunks * fewest, kMaxGridY);
  double least = INFINITY;
  for (int way = 0; way < needs.n_ways; ++way) {
    cut.block.way = way;
    cut.block.common_bytes = needs.ways[way].bytes;
    cut.clocks = needs.ways[way].clocks;
    cut.chunks = 0;
    for (int64_t tiles = widest; tiles > 0; --tiles) {
      if (ceil_div(cut.col_tiles, tiles) == cut.chunks) continue;
      cut.chunks = ceil_div(cut.col_tiles, tiles);
      cut.chunk_tiles = ceil_div(cut.col_tiles, cut.chunks);
      if (cut.chunks > most) break;
      if (!cut.choose_warps(max_warps)) continue;
      cut.choose_band();
      if (const double cost = cut.cost(); cost <= least) {
        least = cost;
        best = cut;
      }
    }
  }
  return least < INFINITY;
}

LinearPlan make_plan(const CodedView& matrix, const SourceNeeds& needs, int log2_rows, Dtype dtype,
                     const Device& device) {
  LinearPlan plan = {};
  const SourceKernels* kernels = kernels_of(matrix);
  if (!kernels) return plan;
  plan.most_shared = device.shared_per_block;
  plan.log2_rows = log2_rows;
  plan.path = Path::fma;
  plan.kernel = kernels->fma;
  plan.chunks = 1;
  plan.grid = std::min<int64_t>(matrix.tile_rows, 1 << 20);
  const MmaKernel mma = mma_kernel(*kernels, log2_rows, dtype, device.arch);
  if (!mma.function) return plan;

  const int64_t x_rows = 1 << log2_rows;
  Cut cut = {};
  cut.x_rows = x_rows;
  cut.limit = shared_memory(device);
  cut.tile_rows = matrix.tile_rows;
  cut.col_tiles = matrix.col_tiles;
  cut.cols = matrix.cols;
  cut.processors = device.processors;
  cut.x_bytes = fragment_bytes(int(x_rows), matrix.tile_cols);
  cut.sums_bytes = 4 * kTileRows * x_rows;
  cut.busy_warps = needs.busy_warps;
  cut.block.warp_bytes = needs.warp_bytes;
  cut.block.reserve_bytes = needs.reserve_bytes;
  Cut best = {};
  if (!choose_cut(cut, needs, mma.max_warps, best)) return plan;
  plan.path = Path::mma;
  plan.kernel = mma.function;
  plan.chunks = int(best.chunks);
  plan.chunk_tiles = int(best.chunk_tiles);
  plan.band_rows = int(best.band_rows);
  plan.x_bytes = int(best.chunk_tiles * best.x_bytes);
  plan.grid = best.blocks();
  plan.block = best.block;
  return plan;
}

// Of kernels whose blocks take shares of the tiles, with what the source needs and no more. `grid`:
// the blocks.
BlockLayout tiles_block(const CodedView& matrix, const Device& device, int64_t& grid) {
  const SourceNeeds needs = needs_of(matrix, kMostDecodeWarpBytes);
  const int64_t tiles = matrix.tile_rows * matrix.col_tiles, limit = shared_memory(device);
  BlockLayout block = {};
  block.common_bytes = needs.ways[0].bytes;
  block.warp_bytes = needs.warp_bytes;
  block.reserve_bytes = needs.reserve_bytes;
  block.warps = int(std::min<int64_t>(ceil_div(tiles, device.processors), kMaxWarps));
  while (block.warps > 1 && block.bytes() > limit) --block.warps;
  for (int way = 1; way < needs.n_ways; ++way) {
    BlockLayout more = block;
    more.way = way;
    more.common_bytes = needs.ways[way].bytes;
    if (more.bytes() <= limit) block = more;
  }
  grid = std::min<int64_t>(ceil_div(tiles, block.warps), device.processors);
  return block;
}

int log2_of(int64_t x_rows) {
  int log2 = 0;
  while (int64_t(1) << log2 < x_rows) ++log2;
  return log2;
}

}  // namespace

LinearPlan plan_linear(const CodedView& matrix, int64_t x_rows, Dtype dtype, const Device& device) {
  if (x_rows > kMaxFusedRows) return {};
  return make_plan(matrix, needs_of(matrix, kMostLinearWarpBytes), log2_of(x_rows), dtype, device);
}

LinearPlan cached_plan_linear(const CodedView& matrix, int64_t x_rows, Dtype dtype,
                              const Device& device) {
  if (x_rows > kMaxFusedRows) return {};
  const SourceNeeds needs = needs_of(matrix, kMostLinearWarpBytes);
  const int log2_rows = log2_of(x_rows);
  // All that make_plan looks at; a source's other ways follow from the first.
  using Plans = Remembered<14, LinearPlan>;
  static Plans& plans = *new Plans;  // threads may still call while the process ends
  const Plans::Key key = {int64_t(intptr_t(kernels_of(matrix))),
                          matrix.tile_rows,
                          matrix.col_tiles,
                          matrix.cols,
                          matrix.tile_cols,
                          needs.ways[0].bytes,
                          needs.warp_bytes,
                          needs.reserve_bytes,
                          log2_rows,
                          int64_t(dtype),
                          device.arch,
                          device.processors,
                          device.shared_per_block,
                          device.shared_per_processor};
  LinearPlan plan;
  if (plans.find(key, plan)) return plan;
  plan = make_plan(matrix, needs, log2_rows, dtype, device);
  plans.remember(key, plan);
  return plan;
}

DecodePlan plan_decode(const CodedView& matrix, const Device& device) {
  DecodePlan plan = {};
  const SourceKernels* kernels = kernels_of(matrix);
  if (!kernels) return plan;
  plan.kernel = kernels->matrix;
  plan.block = tiles_block(matrix, device, plan.grid);
  plan.most_shared = device.shared_per_block;
  return plan;
}

ToFixedArgs to_fixed_args(const CodedView& source, int tile_cols) {
  ToFixedArgs a = {};
  a.source = source;
  CodedView& target = a.target;
  target.coding = Coding::fixed;
  target.format = source.format;
  target.rows = source.rows;
  target.cols = source.cols;
  target.tile_cols = tile_cols;
  target.tile_rows = source.tile_rows;
  if (source.coding == Coding::stored) {  // has no tiles of its own
    a.source.tile_cols = tile_cols;
    a.source.col_tiles = a.source.column_tiles().count();
    a.source.tile_rows = target.tile_rows = ceil_div(source.rows, kTileRows);
  }
  target.derive();
  a.piece_cols = std::gcd(a.source.tile_cols, tile_cols);
  return a;
}

ToFixedPlan plan_to_fixed(const ToFixedArgs& args, const Device& device) {
  ToFixedPlan plan = {};
  plan.kernels = to_fixed_kernels(args.source);
  plan.block = tiles_block(args.source, device, plan.grid);
  plan.most_shared = device.shared_per_block;
  return plan;
}

}  // namespace codecllm::cuda
