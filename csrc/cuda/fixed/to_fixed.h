// From any bf16 matrix to the coding `fixed`, on the host: what is asked for, sizes, launches.
//
// Two passes over the source, each of which decodes it once more, so that nothing dense is kept.
// The first writes the plane and counts the listed weights; torch sums the counts up; the second
// writes every listed weight to its place. No place depends on the order in which blocks run.
#pragma once
#include "../plan.h"

namespace codecllm::cuda {

struct ToFixedArgs {
  CodedView source;      // of coding rans, or stored with tiles of the target's width
  CodedView target;      // its geometry; of its streams nothing
  const int32_t* bases;  // [segments], gmem
  // A piece is a row of a target tile as far as one source tile reaches at least; all are of one
  // width, which divides the columns of a tile of both.
  int piece_cols;
  uint8_t* plane;       // first pass, out: [tile_rows * plane_row_bytes] gmem
  int32_t* counts;      // first pass, out: [tiles, 16, pieces] gmem, zeros before
  const int64_t* sums;  // second pass, in: the counts summed up to each, itself included
  uint32_t* list;       // second pass, out: [listed] gmem
  int64_t listed;       // what the last of the sums is
  int32_t* ends;        // second pass, out: [tiles] gmem
  BlockLayout block;
  uint64_t* status;  // smallest number of a corrupt tile of the source, or null

  CLLM_HD int64_t tiles() const { return target.tile_rows * target.col_tiles; }
  CLLM_HD int pieces() const { return target.tile_cols / piece_cols; }
  CLLM_HD int64_t count() const { return tiles() * kTileRows * pieces(); }
};

using ToFixedKernel = void (*)(ToFixedArgs);

struct ToFixedKernels {
  ToFixedKernel plane, list;  // first and second pass; null for a source that is not known
};
ToFixedKernels to_fixed_kernels(const CodedView& source);  // in to_fixed.cu

struct ToFixedPlan {
  ToFixedKernels kernels;
  BlockLayout block;
  int64_t grid;
  int most_shared;
};

// `source`: what coded_view (csrc/torch/coded_args.h) makes of the operand. Fills source, target
// and piece_cols.
ToFixedArgs to_fixed_args(const CodedView& source, int tile_cols);

ToFixedPlan plan_to_fixed(const ToFixedArgs& args, const Device& device);

}  // namespace codecllm::cuda
