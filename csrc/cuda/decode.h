// Arguments of the decode kernels. Plain data: no torch, no CUDA runtime.
#pragma once
#include "linear.h"

namespace codecllm::cuda {

// Status of an id outside the matrix: above every tile's number, below "nothing happened".
constexpr unsigned long long kBadId = ~0ull - 1;

struct DecodeArgs {
  CodedView matrix;
  uint8_t* out;        // [rows or ids_count, cols] words
  const int64_t* ids;  // decode_rows only
  int64_t ids_count;
  BlockLayout block;  // decode_matrix only
  uint64_t* status;   // smallest number of a corrupt tile, or null
};

}  // namespace codecllm::cuda
