// What the CPU kernels offer, per instruction set, and the choice between these. No torch.
#pragma once
#include "../core/coded_view.h"
#include "../core/convert.h"
#include "../core/scale.h"
#include "to_fixed.h"

namespace codecllm {

// Rows of x that linear_fixed.h keeps sums of in registers: beside a tile decoded in scratch, and
// while it decodes.
constexpr int kBlockRows = 6, kRegisterRows = 8, kFloatRegisterRows = 4;

// How x meets decoded weights.
enum class LinearPath {
  tiles,            // of any coding, decoded to scratch: linear_kernel.h
  fixed_registers,  // in the registers they were decoded in: linear_fixed.h
  fixed_scaled,     // as fixed_blocks, of halves as they stand in the plane
  fixed_blocks,     // a decoded tile of bfloat16, many rows of bfloat16: linear_fixed.h
};

struct LinearArgs {
  LinearPath path;
  const void* x;     // [M, K] packed by pack_x
  bool x_is_bf16;    // packed as bfloat16, else as float
  int x_exponent;    // packed x is x times two to this power
  int64_t m;         // rows of x
  Scale scale;       // of the weight, [N] or for all
  const void* bias;  // [N] of dtype `dtype`, or null
  void* out;         // [M, N] of dtype `dtype`
  Dtype dtype;
  int64_t n;  // rows of the weight
};

// Results of so many bytes are written past the caches. Measured on a core with 1 MiB of
// second-level cache, decode with a product behind it that reads the result: 1.8 times as fast at
// 8 MiB, 0.8 at 2 MiB.
constexpr int64_t kStreamFrom = 4 << 20;

// All kernels work on tile rows [begin, end) and write nothing else; `scratch` has scratch_bytes()
// bytes, 64-byte aligned, one per thread.
struct Kernels {
  const char* name;
  bool (*supported)();
  bool bf16_dot;  // multiplies bfloat16 pairs natively
  bool simd;      // has registers of this machine
  Status (*decode)(const CodedView&, int64_t begin, int64_t end, uint8_t* out, uint8_t* scratch);
  // Decoded, scaled and rounded to `dtype`; `out` begins at row `row0` of the matrix.
  Status (*decode_as)(const CodedView&, int64_t begin, int64_t end, Dtype dtype, const Scale& scale,
                      int64_t row0, uint8_t* out, uint8_t* scratch);
  Status (*linear)(const CodedView&, int64_t begin, int64_t end, const LinearArgs&,
                   uint8_t* scratch);
  // The matrix as coding fixed. `scratch`: to_fixed_scratch_bytes().
  Status (*to_fixed)(const CodedView&, int64_t begin, int64_t end, const FixedTarget&,
                     uint8_t* scratch);
  int64_t (*to_fixed_scratch_bytes)(const CodedView&);
  // The first tile of a matrix of coding fixed that holds a lie; decoding does not notice all.
  Status (*check_fixed)(const CodedView&, int64_t begin, int64_t end);
};

extern const Kernels kPortable;
#ifndef CLLM_NO_X86
extern const Kernels kAvx2, kAvx512, kAvx512Bf16;
#endif

// ---- kernels.cpp: the choice --------------------------------------------------------------------

// Fastest supported first, portable last; null-terminated.
const Kernels* const* all_kernels();

// The kernels in use: the fastest supported, or the one chosen by select_kernels.
const Kernels& kernels();

// False if there is no such instruction set on this machine. "" goes back to the fastest.
bool select_kernels(const char* name);

// Bytes of scratch for `m` rows of x (0: decode only).
int64_t scratch_bytes(const CodedView&, int64_t m);

// ---- pack_x.cpp ---------------------------------------------------------------------------------

// Rows of x in a block of the packed layout that begins at row `at` of `m`.
CLLM_INLINE int block_rows(LinearPath path, int64_t at, int64_t m) {
  const int64_t left = m - at;
  switch (path) {
    case LinearPath::fixed_registers:
      return int(left);
    case LinearPath::fixed_scaled:
    case LinearPath::fixed_blocks: {  // as equal as they can be
      const int64_t blocks = ceil_div(left, kBlockRows);
      return int(ceil_div(left, blocks));
    }
    default:
      return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
  }
}

// Whether x is packed as bfloat16: pairs and x can be multiplied natively.
bool packs_bf16(const Kernels&, const CodedView&, Dtype dtype);

// Largest and smallest exponent field, as of float32, of numbers that are not zero.
struct Exponents {
  int largest = 0, smallest = 512;

  bool all_zero() const { return smallest > largest; }
  void merge(const Exponents&);
};

// Of elements [begin, end) of x.
Exponents exponents(Dtype dtype, const void* x, int64_t begin, int64_t end);

// Whether choose_path has to know the exponents of x.
bool may_scale_x(const Kernels&, const CodedView&, Dtype dtype, int64_t m);

// The path for x, and for the scaled ones the power of two that x is scaled by.
LinearPath choose_path(const Kernels&, const CodedView&, Dtype dtype, int64_t m,
                       const Exponents& of_x, int& x_exponent);

// Columns of packed x: zeros behind those that x has, as far as kernels read.
CLLM_INLINE int64_t packed_cols(LinearPath path, int64_t k) {
  const int64_t groups = ceil_div(k, kGroupCols);
  return kGroupCols * (path == LinearPath::fixed_registers ? groups + kFixedUnit - 1 : groups);
}

// Bytes of x [m, k] packed.
int64_t packed_bytes(LinearPath path, int64_t m, int64_t k, bool as_bf16);

// Reorders x [M, K] (contiguous) to the order in which tiles meet it, times two to the power
// `exponent`. Per block of rows: [group][half group][row][8], where the 8 columns are in order
// (bfloat16) or first the even, then the odd ones (float). Only the blocks that begin at rows
// [begin, end).
void pack_x(LinearPath path, const void* x, Dtype dtype, int64_t m, int64_t k, bool as_bf16,
            int exponent, int64_t begin, int64_t end, void* out);

// ---- rows.cpp -----------------------------------------------------------------------------------

// First row of a row of tiles; the number of rows for `tile_row == tile_rows`.
int64_t first_row(const CodedView&, int64_t tile_row);

// Rows given by `ids[begin..end)`, one lane quadruple of each of their tiles decoded, to
// out [n_ids, cols] words.
Status decode_rows(const CodedView&, const int64_t* ids, int64_t begin, int64_t end, uint8_t* out);

}  // namespace codecllm
