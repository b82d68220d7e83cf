// Numbers of docs/format.md that kernels need, for host and device. No torch, no CUDA runtime.
// tests/format/test_constants.py equates them with codecllm_ops/format.
#pragma once
#include <stdint.h>

#include <type_traits>

// Always inline: the CPU kernels compile these headers several times with different instruction
// sets, and an out-of-line copy could be the one that this machine cannot run.
#define CLLM_INLINE inline __attribute__((always_inline))

#if defined(__CUDACC__) || defined(__HIPCC__)
#define CLLM_HD __host__ __device__ __forceinline__
#else
#define CLLM_HD CLLM_INLINE
#endif

namespace codecllm {

constexpr int kLanes = 32;
constexpr int kTileRows = 16;
constexpr int kGroupCols = 16;
constexpr int kPairsPerGroup = 4;
constexpr int kMaxTileCols = 16384;
constexpr int kStreamAlign = 16;  // bytes
constexpr int kStreamPadWords = 8;
constexpr int kMinScaleBits = 8, kMaxScaleBits = 11;
constexpr int kEscapeIndex = 31;
constexpr int kEscape = 32 * kEscapeIndex + kEscapeIndex;  // its id among the pair symbols
constexpr int kTableHeader = 8;  // int32 of a segment, before what else the coding keeps
constexpr int kMaxPlanes = 4;

struct Plane {
  uint32_t mask = 0;  // of a pair register: the 16-bit mask of section 5, twice
  int bits = 0;
  bool low_half = false;
};

struct WeightFormat {
  int id, word_bits, coded_shift, coded_bits;
  uint32_t flip;
  Plane planes[kMaxPlanes] = {};
  int n_planes = 0;

  constexpr WeightFormat(int id, int word_bits, int coded_shift, int coded_bits, uint32_t flip = 0)
      : id(id),
        word_bits(word_bits),
        coded_shift(coded_shift),
        coded_bits(coded_bits),
        flip(flip * 0x10001u) {
    // Greedy split (section 5): a plane takes the lowest bit of every residue modulo its width.
    uint32_t half = (1u << (word_bits < 16 ? word_bits : 16)) - 1;
    uint32_t raw = half & ~(((1u << coded_bits) - 1) << coded_shift);
    for (int bits = 16; bits >= 1; bits /= 2) {
      for (;;) {
        uint32_t residues = 0, mask = 0;
        for (int position = 0; position < 16; ++position) {
          uint32_t residue = 1u << (position % bits);
          if ((raw >> position & 1) && !(residues & residue)) {
            residues |= residue;
            mask |= 1u << position;
          }
        }
        if (residues != (1u << bits) - 1) break;
        planes[n_planes++] = Plane{mask * 0x10001u, bits, false};
        raw &= ~mask;
      }
    }
    if (word_bits == 32) planes[n_planes++] = Plane{0xffffffffu, 16, true};
  }

  CLLM_HD constexpr int word_bytes() const { return word_bits / 8; }
  CLLM_HD constexpr uint32_t value_mask() const { return (1u << coded_bits) - 1; }
};

// Kinds: what the bits of a word mean as a number. Conversions (core/convert.h,
// csrc/cpu/to_float.h, csrc/cuda/fragment.cuh) ask for the kind and never for the format: formats
// that code other bits of the same numbers share them.

// A sign, an exponent and a mantissa. Without infinities, all ones is NaN and nothing else is.
template <int Exponent, int Mantissa, bool HasInf>
struct Float {
  static constexpr int exponent = Exponent, mantissa = Mantissa;
  static constexpr bool has_inf = HasInf;
  static constexpr int word_bits = 1 + Exponent + Mantissa;
  static constexpr uint32_t flip = 0;
};

// An integer in two's complement, coded as the offset integer: with its sign bit flipped.
template <int Bits>
struct Integer {
  static constexpr int word_bits = Bits;
  static constexpr uint32_t flip = 1u << (Bits - 1);
};

template <class K, int Id, int CodedShift, int CodedBits>
struct FormatOf {
  using Kind = K;
  static constexpr WeightFormat fmt{Id, K::word_bits, CodedShift, CodedBits, K::flip};

  static_assert(Id > 0 && Id < 256, "the id is one byte of the head");
  static_assert(K::word_bits == 8 || K::word_bits == 16 || K::word_bits == 32, "no such word");
  static_assert(CodedBits >= 1 && CodedBits <= 8, "a literal is two values of a byte");
  static_assert(CodedShift >= 0 && CodedShift + CodedBits <= (K::word_bits < 16 ? 8 : 16),
                "the coded field lies in the (high) half of the word");
};

// Formats of one build alone: the fuzzer has some that the project does not have yet.
#ifndef CLLM_MORE_FORMATS
#define CLLM_MORE_FORMATS(FORMAT)
#endif

// The only list of weight formats in C++, equal to codecllm_ops/format/weight_formats.py.
// FORMAT(name, id, coded_shift, coded_bits, kind); the kind comes last, for its commas.
#define CLLM_FORMATS(FORMAT)                   \
  FORMAT(Bf16, 1, 7, 8, Float<8, 7, true>)     \
  FORMAT(Fp16, 2, 10, 5, Float<5, 10, true>)   \
  FORMAT(Fp32, 3, 7, 8, Float<8, 23, true>)    \
  FORMAT(Fp8E4m3, 4, 3, 4, Float<4, 3, false>) \
  FORMAT(Fp8E5m2, 5, 2, 5, Float<5, 2, true>)  \
  FORMAT(Int8, 6, 4, 4, Integer<8>)            \
  CLLM_MORE_FORMATS(FORMAT)

#define CLLM_FORMAT(name, id, coded_shift, coded_bits, ...) \
  struct name : FormatOf<__VA_ARGS__, id, coded_shift, coded_bits> {};
CLLM_FORMATS(CLLM_FORMAT)
#undef CLLM_FORMAT

// Whether words of both formats mean the same numbers.
template <class A, class B>
constexpr bool kSameKind = std::is_same_v<typename A::Kind, typename B::Kind>;

// Calls f with the format of that id as a value of its type; false if there is none.
template <class F>
CLLM_INLINE bool with_format(int id, F&& f) {
  switch (id) {
#define CLLM_FORMAT(name, ...) \
  case name::fmt.id:           \
    f(name{});                 \
    return true;
    CLLM_FORMATS(CLLM_FORMAT)
#undef CLLM_FORMAT
    default:
      return false;
  }
}

// Calls f with each format, in the order of the list.
template <class F>
CLLM_INLINE void for_each_format(F&& f) {
#define CLLM_FORMAT(name, ...) f(name{});
  CLLM_FORMATS(CLLM_FORMAT)
#undef CLLM_FORMAT
}

CLLM_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Containers of one lane in one plane of a tile.
CLLM_HD constexpr int containers(int plane_bits, int groups) {
  return (kPairsPerGroup * groups * plane_bits + 15) / 16;
}

CLLM_HD constexpr int64_t raw_tile_bytes(const WeightFormat& f, int groups) {
  int64_t n = 0;
  for (int i = 0; i < f.n_planes; ++i) n += containers(f.planes[i].bits, groups);
  return 4 * kLanes * n;
}

// Coding fixed: four pairs of 12 bits a weight in three containers; weights that have no place
// there are entries of a list.
constexpr int kFixedContainers = 3;
constexpr int kFixedUnit = 4;    // groups whose containers are whole quads
constexpr int kFixedCodes = 15;  // exponents window_base + 1 and up
constexpr int kMaxFixedBase = 254 - kFixedCodes;
constexpr int kMaxFixedTileCols = 4096;
constexpr int kListedBytes = 4;
constexpr uint32_t kFixedPlace = 0x87ff87ff;  // sign, code (bits 7..10), mantissa of both halves
constexpr uint32_t kFixedCode = 0x07800780;
// Bits of pair 3 that each container has, shifted to the left by 4, 8, and rotated by 12.
constexpr uint32_t kFixedSpread[] = {0x07800780, 0x00780078, 0x80078007};

CLLM_HD constexpr int64_t fixed_tile_bytes(int groups) {
  return 4 * kLanes * kFixedContainers * int64_t(groups);
}

// An entry of the list: row and column in the tile, and the word. Its upper half is its position.
CLLM_HD constexpr uint32_t list_entry(int row, int col, uint32_t word) {
  return uint32_t(row) << 28 | uint32_t(col) << 16 | word;
}
CLLM_HD constexpr int entry_row(uint32_t entry) { return int(entry >> 28); }
CLLM_HD constexpr int entry_col(uint32_t entry) { return int(entry >> 16 & 0xfff); }
static_assert(kMaxFixedTileCols == 0x1000, "an entry has 12 bits for its column");

// 32-bit word of container i of a lane inside a plane: quads, so that a lane reads 16 bytes.
CLLM_HD constexpr int container_at(int i, int lane, int count) {
  int quad = i / 4, left = count - 4 * quad;
  return 4 * kLanes * quad + (left < 4 ? left : 4) * lane + i % 4;
}

// Row in the tile and first column in the group of pair j of a lane (the A fragment of m16n8k16).
CLLM_HD constexpr int pair_row(int lane, int j) { return lane / 4 + 8 * (j & 1); }
CLLM_HD constexpr int pair_col(int lane, int j) { return 2 * (lane % 4) + 8 * (j >> 1); }

// Where the pair of that row and column of a tile is in lane order, [group][j][lane].
CLLM_HD constexpr int pair_at(int row, int col) {
  int j = row / 8 + 2 * (col / 8 % 2), lane = row % 8 * 4 + col % 8 / 2;
  return (col / kGroupCols * kPairsPerGroup + j) * kLanes + lane;
}

// The eight columns from a multiple of 8 on are a run of four pairs; the next eight are so far
// away.
constexpr int kRunsApart = pair_at(0, 8);
static_assert(pair_at(0, 16) == 2 * kRunsApart && pair_at(0, 6) == 3);

// How columns are cut into tiles: all of tile_cols, the last one of what is left.
struct ColumnTiles {
  int64_t cols;
  int tile_cols;

  CLLM_HD constexpr int64_t count() const { return ceil_div(cols, tile_cols); }
  CLLM_HD constexpr int64_t first_col(int64_t tile) const { return tile * tile_cols; }
  CLLM_HD constexpr int columns(int64_t tile) const {
    const int64_t left = cols - first_col(tile);
    return int(left < tile_cols ? left : tile_cols);
  }
  CLLM_HD constexpr int groups(int64_t tile) const {
    return int(ceil_div(columns(tile), kGroupCols));
  }
  // Raw plane of a row of tiles.
  CLLM_HD constexpr int64_t raw_row_bytes(const WeightFormat& f) const {
    if (cols == 0) return 0;
    const int64_t last = count() - 1;
    return last * raw_tile_bytes(f, tile_cols / kGroupCols) + raw_tile_bytes(f, groups(last));
  }
  // The same of the plane of coding fixed.
  CLLM_HD constexpr int64_t fixed_row_bytes() const {
    return fixed_tile_bytes(int(ceil_div(cols, kGroupCols)));
  }
};

}  // namespace codecllm
