// The seam between what a coding is and what a kernel does with the weights.
//
// A source S turns the bytes of one coding, for one weight format, into groups: 16 rows x 16
// columns of weights, four pair registers to a lane, in the order of the A fragment of
// mma.m16n8k16. Kernels are templates over S and know nothing else of a coding. S has
//
//   Format             the weight format
//   kMma               whether linear_mma is worth compiling
//   max_warps(M)       warps of a linear_mma block for M rows of x: what registers allow
//   Common             what the warps of a block have together for a segment, as a lane sees it
//   fill(..)           all threads: writes it to the first bytes of shared memory
//   common(..)         a lane's view of it, after a barrier
//   Tile               a LocatedTile, and what else the source must know of a tile
//   locate(..)         a warp: finds a tile, `valid` if its bytes lie inside the tensors
//   stage(.., work)    a warp: brings a tile near, returns work(reader)
//   alone(.., f)       f(group) for the groups of a tile, for a lane with nothing in common or near
//   each_apart(.., f)  f(row, col, word) for weights that groups have as zeros, because they are
//                      too rare for a place in the loop; the same calls in all lanes of a tile.
//                      Then, whether all of them lay inside of it
//   scale_x<B16>(two)  two numbers of x as the groups want them, while x is staged
//   unscale(.., sum)   a sum of products with such x, as it is meant
//   stand_in(..)       makes a tile that is not valid one that any lane may read
//
// and a reader has
//
//   kStaged            whether this is the fast way, worth a loop of its own
//   each_group(f)      f(group) for the groups of a tile in order; then, whether the tile ended as
//                      it must. A corrupt tile reads nothing outside of the tensors and of the
//                      block's shared memory, whatever comes out.
//
// and a group
//
//   number, odd        its number in the tile; whether that is odd, known to the compiler
//   fragment<B16>(a)   the weights as an A fragment of the tensor cores, exact
//   words(j), low(j)   the words of pair j: its halves; the low halves of 32-bit words
//
// What a source needs of shared memory, it tells the plan (SourceNeeds in block.h). The list of
// codings stands in codings.h.
#pragma once
#include "segments.cuh"

namespace codecllm::cuda {

struct LocatedTile {
  int segment, groups, rows;  // rows inside the matrix, 1..16
  int64_t out_row;            // the first of them
  bool valid;
};

// Rows of a tile by its segment's header; not valid if they are not inside of the matrix.
CLLM_DEVICE void place_tile(const CodedView& matrix, int64_t tile_row, LocatedTile& tile) {
  const uint32_t* header = matrix.segment(tile.segment);
  const int64_t local = (tile_row - __ldg(header + kFirstTileRow)) * kTileRows;
  const int64_t left = int64_t(__ldg(header + kRows)) - local;
  tile.rows = int(left < kTileRows ? left : kTileRows);
  tile.out_row = __ldg(header + kFirstRow) + local;
  tile.valid = local >= 0 && left > 0 && tile.out_row + tile.rows <= matrix.rows;
}

// The lane whose pairs have a weight of the tile.
CLLM_HD constexpr int lane_of(int row, int col) { return row % 8 * 4 + col % 8 / 2; }

// Where a tile lies, and whose table it must name.
struct TilePlace {
  int64_t tile_row, col_tile, segment;
};

// Runs work(tile, reader) on a tile. False, in all lanes, if the tile is corrupt or names another
// segment.
template <class S, class Work>
CLLM_DEVICE bool with_tile(const CodedView& matrix, const BlockLayout& layout,
                           const typename S::Common& common, SharedAddress buffer,
                           const TilePlace& place, Work&& work) {
  const typename S::Tile tile = S::locate(matrix, place.tile_row, place.col_tile, threadIdx.x & 31);
  bool good = tile.valid && tile.segment == place.segment;
  if (good)
    good = S::stage(tile, common, layout, buffer, [&](auto reader) { return work(tile, reader); });
  good = __all_sync(~0u, good);
  __syncwarp();  // the next tile takes this one's place in the buffer
  return good;
}

}  // namespace codecllm::cuda
